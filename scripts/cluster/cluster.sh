#!/usr/bin/env bash
# A Kubernetes cluster for the tests, and for trying things out.
#
#   cluster.sh up               make it ready; run again, mend what died
#   cluster.sh prepare          fetch and build what `up` would otherwise have to, and start nothing
#   cluster.sh down             end it and leave the machine as it was; what was built or fetched stays in the cache
#   cluster.sh status           what runs
#   cluster.sh is-up            print yes or no
#   cluster.sh load ARCHIVE...  give it images from OCI archives
#   cluster.sh restart NAME     end a part (kube-apiserver, kubelet, ...) and start it again
#   cluster.sh provider         print which of the providers below serves here
#   cluster.sh kubeconfig       print the path of the kubeconfig
#   cluster.sh tools            print the folder of kubectl and helm
#
# Providers, the first that can serve:
#   given    OUTLAST_E2E_KUBECONFIG names the kubeconfig of a cluster that is not ours to start or stop
#   kind     docker answers and kind is installed
#   debian   root on Debian 12: etcd, the control plane, containerd and a kubelet on this machine, built from Debian's
#            source package (build.sh), so that no registry and no download site is needed
# OUTLAST_CLUSTER_PROVIDER=kind or debian chooses; OUTLAST_CLUSTER_STATE names another folder than ~/.cache/outlast/cluster.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
. "$here/lib.sh"
. "$here/tools.sh"
. "$here/control_plane.sh"
. "$here/node.sh"
. "$here/machine.sh"
. "$here/kind.sh"

provider() {
  if [ -n "${OUTLAST_E2E_KUBECONFIG:-}" ]; then
    echo given
  elif [ -n "${OUTLAST_CLUSTER_PROVIDER:-}" ]; then
    echo "$OUTLAST_CLUSTER_PROVIDER"
  elif can_use_kind; then
    echo kind
  elif can_use_debian; then
    echo debian
  else
    fail "no way to a Kubernetes cluster here. Give one: OUTLAST_E2E_KUBECONFIG=/path/to/kubeconfig;" \
      "or install docker and kind; or run as root on Debian 12 (x86-64), where one is built." \
      "To go without: OUTLAST_SKIP_E2E=1"
  fi
}

can_use_debian() {
  [ "$(id -u)" = 0 ] && (. /etc/os-release && [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ])
}

# --- debian

prepare_debian() {
  can_use_debian || fail "the provider debian needs root on Debian 12"
  apt_install etcd-server containerd runc containernetworking-plugins iptables conntrack iproute2 socat ethtool procps \
    openssl dnsmasq-base
  "$here/build.sh"
}

up_debian() {
  prepare_debian
  local started=$SECONDS
  mkdir -p "$RUN/log" "$RUN/pids"
  NODE_ADDRESS=$(node_address)
  [ -n "$NODE_ADDRESS" ] || fail "this machine has no network address but the loopback's; give it one: ip addr add 192.168.255.1/32 dev lo"
  note_machine
  choose_ports
  make_keys
  write_kubeconfig
  start_etcd
  start_api_server
  start_controllers
  start_containerd
  load_pause_image
  start_kubelet
  start_kube_proxy
  start_dns
  wait_for 60 "the kubelet" is_port_taken "$KUBELET_PORT"
  wait_for 90 "the node" is_node_ready
  wait_for 30 "the default service account" kubectl get serviceaccount default
  say "ready after $((SECONDS - started)) s: export KUBECONFIG=$KUBECONFIG_FILE PATH=$TOOLS:\$PATH"
}

has_no_pods() { [ -z "$(ctr containers ls -q)" ]; }

down_debian() {
  [ -d "$RUN" ] || return 0
  [ -d "$BEFORE" ] || fail "$BEFORE is missing: what the machine was like before is not known; stop the processes in $RUN/pids and remove $RUN"
  if is_running kube-apiserver && is_running kubelet; then # the kubelet ends pods most tidily
    stop kube-controller-manager # else it makes new ones
    kubectl delete pods --all -A --grace-period=0 --force --wait=false --request-timeout=10s >/dev/null 2>&1 || true
    wait_for 20 "the end of all pods" has_no_pods 2>/dev/null || true
  fi
  local name
  for name in dns dnsmasq kube-proxy kubelet kube-scheduler kube-controller-manager kube-apiserver containerd etcd; do
    stop "$name"
  done
  end_containers
  unmount_all
  restore_machine
  rm -rf --one-file-system "$RUN" "$KUBECONFIG_FILE"
  say "down"
}

is_up_debian() { is_running kube-apiserver && is_running kubelet; }

status_debian() {
  local name
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy dnsmasq dns; do
    if is_running "$name"; then echo "$name: pid $(pid_of "$name")"; else echo "$name: not running"; fi
  done
}

restart_debian() { # name
  case $1 in kube-apiserver | etcd | kube-controller-manager | kube-scheduler | kubelet | kube-proxy | containerd | dns | dnsmasq) ;;
  *) fail "restart: no part is called $1" ;; esac
  stop "$1" "${2:-TERM}"
  up_debian
}

load_debian() {
  local archive
  for archive; do ctr images import "$archive" >/dev/null; done
}

# --- all providers

main() {
  local command=${1:-up}
  shift || true
  mkdir -p "$STATE"
  exec 9>"$STATE/lock"
  local chosen
  chosen=$(provider) || exit 1
  case $command in
  prepare | up | down | load | restart) flock 9 ;; # two at once: one after the other
  esac
  case $command in
  provider) echo "$chosen" ;;
  is-up) if [ "$chosen" = given ] || "is_up_$chosen"; then echo yes; else echo no; fi ;;
  kubeconfig) echo "${OUTLAST_E2E_KUBECONFIG:-$KUBECONFIG_FILE}" ;;
  tools) echo "$TOOLS" ;;
  prepare | up)
    install_tools
    [ "$chosen" = given ] || "${command}_$chosen"
    ;;
  down | load | restart)
    [ "$chosen" != given ] || [ "$command" = down ] || fail "$command: the cluster of OUTLAST_E2E_KUBECONFIG is not ours"
    [ "$chosen" = given ] || "${command}_$chosen" "$@"
    ;;
  status)
    [ "$chosen" = given ] || "status_$chosen"
    "$TOOLS/kubectl" --kubeconfig "${OUTLAST_E2E_KUBECONFIG:-$KUBECONFIG_FILE}" get nodes,pods -A -o wide
    ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
}

main "$@"
