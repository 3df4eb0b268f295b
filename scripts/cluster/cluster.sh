#!/usr/bin/env bash
# A Kubernetes cluster for the tests, and for trying things out.
#
#   cluster.sh up                make it ready; run again, start what died
#   cluster.sh prepare           fetch and build what `up` would otherwise have to, and start nothing
#   cluster.sh prepare NAME...   build programs that only some tests need (helm, kueue, metrics-server; see programs/), and
#                                print the folder of each
#   cluster.sh down              end it and leave the machine as it was; what was built or fetched stays in the cache
#   cluster.sh status            what runs
#   cluster.sh is-up             print yes or no
#   cluster.sh load ARCHIVE...   give it images from OCI archives
#   cluster.sh provider          print which of the providers below serves here
#   cluster.sh kubeconfig        print the path of the kubeconfig
#   cluster.sh tools             print the folder of kubectl and helm
#   cluster.sh kubelets          print the nodes that have power, each with the folder of its kubelet as this machine sees
#                                it; OUTLAST_E2E_KUBELETS says that of a given cluster's: "NODE FOLDER", one a line
#   cluster.sh api-server DIR [controllers]
#                                an API server alone (with the controller manager), its data in DIR: prints the path of
#                                its kubeconfig when it is ready, and ends with its standard input, or by a signal
#
# Faults, on the provider modules; N is a node's number:
#   power-off N | power-on N                   all processes of the node end at once, unheard; a reboot
#   cut N [in|out] | slow N RATE | heal N      the node's network: nothing passes (one way), or 10mbit; as before
#   fill N [PERCENT] | free N                  the disk of the node's kubelet: PERCENT (1) stay free
#   drain N | cordon N | uncordon N            as kubectl does, with the usual options
#   stop PART [SIGNAL] | start PART | restart PART [SIGNAL]
#                                              etcd, kube-apiserver, ...; with a node's number kubelet-N, containerd-N, ...
#   on N COMMAND...                            run a command on the node, as root
#
# Providers, the first that can serve:
#   given    OUTLAST_E2E_KUBECONFIG names the kubeconfig of a cluster that is not ours to start or stop
#   kind     docker answers and kind is installed
#   modules  root on Linux (x86-64): three nodes on this machine, built from Go modules, so that no registry and no
#            download site is needed; of Kubernetes 1.37, or OUTLAST_KUBERNETES=1.30, the oldest that is supported
# OUTLAST_CLUSTER_PROVIDER=kind or modules chooses; OUTLAST_CLUSTER_STATE names another folder than ~/.cache/outlast/cluster.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
. "$here/lib.sh"
. "$here/programs.sh"
. "$here/tools.sh"
. "$here/keys.sh"
. "$here/control_plane.sh"
. "$here/api_server.sh"
. "$here/network.sh"
. "$here/machine.sh"
. "$here/store.sh"
. "$here/node.sh"
. "$here/kind.sh"
. "$here/modules.sh"
. "$here/faults.sh"

provider() {
  if [ -n "${OUTLAST_E2E_KUBECONFIG:-}" ]; then
    echo given
  elif [ -n "${OUTLAST_CLUSTER_PROVIDER:-}" ]; then
    echo "$OUTLAST_CLUSTER_PROVIDER"
  elif can_use_kind; then
    echo kind
  elif can_use_modules; then
    echo modules
  else
    fail "no way to a Kubernetes cluster here. Give one: OUTLAST_E2E_KUBECONFIG=/path/to/kubeconfig;" \
      "or install docker and kind; or run as root on Linux (x86-64), where one is built." \
      "To go without: OUTLAST_SKIP_E2E=1"
  fi
}

prepare_programs() { # name...
  local program
  for program; do
    build_program "$program"
    folder_of "$program"
  done
}

main() {
  local command=${1:-up} chosen
  shift || true
  mkdir -p "$STATE"
  case $command in
  api-server) api_server "$@"; return ;;
  prepare) [ $# = 0 ] || { prepare_programs "$@"; return; } ;;
  esac
  exec 9>"$STATE/lock"
  chosen=$(provider) || exit 1
  case $command in
  prepare | up | down | load | power-off | power-on | stop | start | restart) flock 9 ;; # two at once: one after the other
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
  kubelets) if [ "$chosen" = given ]; then echo "${OUTLAST_E2E_KUBELETS:-}"; else "kubelets_$chosen"; fi ;;
  down) [ "$chosen" = given ] || "down_$chosen" ;;
  status)
    [ "$chosen" = given ] || "status_$chosen"
    "$TOOLS/kubectl" --kubeconfig "${OUTLAST_E2E_KUBECONFIG:-$KUBECONFIG_FILE}" get nodes,pods -A -o wide
    ;;
  load | power-off | power-on | cut | slow | heal | fill | free | drain | cordon | uncordon | stop | start | restart | on)
    [ "$chosen" != given ] || fail "$command: the cluster of OUTLAST_E2E_KUBECONFIG is not ours"
    declare -F "${command//-/_}_$chosen" >/dev/null || fail "$command: the provider $chosen cannot; modules can"
    "${command//-/_}_$chosen" "$@"
    ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
}

main "$@"
