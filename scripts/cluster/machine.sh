# shellcheck shell=bash
# What a cluster changes on the machine outside $STATE, noted before the first change and put back by `down`; to be
# sourced after node.sh.

# Written by kube-proxy, the kubelet and the network plugin.
SYSCTLS=(net.ipv4.ip_forward net.ipv4.conf.all.route_localnet vm.overcommit_memory kernel.panic kernel.panic_on_oops)
# Paths that Kubernetes and containerd have built in.
BUILT_IN_PATHS=(/var/log/pods /var/log/containers /var/lib/cni /var/lib/kubelet /run/containerd /run/netns
  /var/run/kubernetes /usr/libexec/kubernetes)
BEFORE=$RUN/before

note_machine() {
  [ -d "$BEFORE" ] && return # of a cluster that crashed: what is there now is no longer what was there
  mkdir -p "$BEFORE.new"
  local name path
  for name in "${SYSCTLS[@]}"; do printf '%s=%s\n' "$name" "$(sysctl -n "$name")"; done >"$BEFORE.new/sysctl.conf"
  for path in "${BUILT_IN_PATHS[@]}"; do [ -e "$path" ] || echo "$path"; done >"$BEFORE.new/absent-paths"
  ls /run/netns 2>/dev/null >"$BEFORE.new/netns" || true
  (cd /sys/fs/cgroup && find . -maxdepth 2 -name kubepods 2>/dev/null) >"$BEFORE.new/cgroups"
  mv "$BEFORE.new" "$BEFORE"
}

# Tables of iptables that were not there stay behind, empty: they let everything pass, as none would.
remove_chains() { # iptables or ip6tables: every chain of kube-proxy, kubelet and CNI, and every rule that leads there
  local rules
  rules=$("$1-save" -c 2>/dev/null) || return 0
  grep -qE 'KUBE-|CNI-' <<<"$rules" || return 0
  grep -vE 'KUBE-|CNI-' <<<"$rules" | "$1-restore" -c
}

end_containers() { # those that the kubelet could not end: the processes under our shims, then the shims
  local shim
  for shim in $(pgrep -f "^/usr/bin/containerd-shim-runc-v2 .*-address $CONTAINERD_SOCKET( |\$)"); do
    # killing the first process of a container's PID namespace ends all that live in it
    pkill -KILL -P "$shim" || true
    kill -KILL "$shim" 2>/dev/null || true
  done
}

unmount_all() { # of the cluster, and of images that were being built
  local point
  # deepest first; a path with spaces is escaped in /proc/mounts, and none of ours has one
  for point in $(awk -v state="$STATE/" 'index($2, state) == 1 { print $2 }' /proc/mounts | sort -r); do
    umount "$point" 2>/dev/null || umount -l "$point"
  done
}

remove_networks() {
  local name
  for name in $(ls /run/netns 2>/dev/null | grep '^cni-' | grep -vxFf "$BEFORE/netns"); do ip netns delete "$name" || true; done
  for name in $(ip -o link show type veth 2>/dev/null | sed -nE 's/^[0-9]+: (veth[0-9a-f]{8})@.*/\1/p'); do
    ip -4 route show dev "$name" | grep -q '^10\.244\.' && ip link delete "$name" 2>/dev/null || true
  done
  rm -rf /var/lib/cni/results/outlast-pods-* /var/lib/cni/cache/results/outlast-pods-*
}

remove_cgroups() {
  local path
  for path in $(cd /sys/fs/cgroup && find . -maxdepth 2 -name kubepods 2>/dev/null | grep -vxFf "$BEFORE/cgroups"); do
    find "/sys/fs/cgroup/$path" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}

restore_machine() {
  remove_networks
  remove_chains iptables
  remove_chains ip6tables
  remove_cgroups
  sysctl -q -p "$BEFORE/sysctl.conf" || true
  while read -r path; do rm -rf --one-file-system "$path"; done <"$BEFORE/absent-paths"
}
