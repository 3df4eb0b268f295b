# shellcheck shell=bash
# What a cluster changes on the machine outside $STATE, noted before the first change and put back by `down`; to be
# sourced after lib.sh. Mounts, packet filters and network devices of nodes need no note: they end with their namespaces.

SYSCTLS=(net.ipv4.ip_forward vm.overcommit_memory kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys
  kernel.keys.root_maxbytes)
# Paths that Kubernetes and containerd have built in. Nodes mount their own over them; the machine needs the empty folder.
NODE_PATHS=(/var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /run/containerd)
BEFORE=$RUN/before

note_machine() {
  [ -d "$BEFORE" ] && return # of a cluster that crashed: what is there now is no longer what was there
  mkdir -p "$BEFORE.new"
  local name path
  for name in "${SYSCTLS[@]}"; do printf '%s=%s\n' "$name" "$(sysctl -n "$name")"; done >"$BEFORE.new/sysctl.conf"
  for path in "${NODE_PATHS[@]}" /run/netns /run/xtables.lock; do [ -e "$path" ] || echo "$path"; done >"$BEFORE.new/absent-paths"
  mv "$BEFORE.new" "$BEFORE"
  mkdir -p "${NODE_PATHS[@]}"
}

restore_machine() {
  [ -d "$BEFORE" ] || return 0
  sysctl -q -p "$BEFORE/sysctl.conf"
  local path
  while read -r path; do
    if [ "$path" = /run/netns ] && mountpoint -q "$path"; then umount "$path"; fi # ip makes it a mount of its own
    if [ -d "$path" ]; then rmdir "$path" || say "$path was not there before, and is left: it is not empty"; else rm -f "$path"; fi
  done <"$BEFORE/absent-paths"
}

# --- control groups: a root of its own for each node, in every hierarchy

make_cgroup() { # node's name
  local hierarchy
  for hierarchy in $(cgroup_hierarchies); do
    mkdir -p "$hierarchy/$1"
    [ ! -f "$hierarchy/cpuset.cpus" ] || { # of version 1, where a group without them takes no process
      cat "$hierarchy/cpuset.cpus" >"$hierarchy/$1/cpuset.cpus"
      cat "$hierarchy/cpuset.mems" >"$hierarchy/$1/cpuset.mems"
    }
    # By default all pods of a node together would weigh as much as one process of this machine.
    [ ! -f "$hierarchy/$1/cpu.shares" ] || echo 32768 >"$hierarchy/$1/cpu.shares"
    [ ! -f "$hierarchy/$1/cpu.weight" ] || echo 3200 >"$hierarchy/$1/cpu.weight"
  done
}

remove_cgroup() { # node's name: it has no processes any more, or will have none at once
  local hierarchy
  for hierarchy in $(cgroup_hierarchies); do
    [ ! -d "$hierarchy/$1" ] || wait_for 10 "the end of the processes in $hierarchy/$1" remove_tree "$hierarchy/$1"
  done
}

remove_tree() { find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$1" ]; }

cgroup_hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts; }
