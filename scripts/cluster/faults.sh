# shellcheck shell=bash
# Faults for tests, on the provider modules; to be sourced after modules.sh. Each says in one line what it did.

is_node() { [[ ${1:-} =~ ^[1-9]$ ]] && [ "$1" -le "$NODES" ]; }

need_node() { is_node "${1:-}" || fail "$command: name a node by its number, 1 to $NODES, not '${1:-}'"; }

need_power() { need_node "$@"; is_running "node-$1" || fail "$command: node-$1 has no power; give it some: cluster.sh power-on $1"; }

power_off_modules() { need_node "$@"; power_off "$1"; say "node-$1 is off"; } # N

power_on_modules() { need_node "$@"; power_on "$1"; say "node-$1 starts"; } # N

cut_modules() { # N [in|out]: both ways, or what the node would hear (in), or say (out)
  need_power "$@"
  case ${2:-both} in
  in | out) cut_network "$1" "$2" ;;
  both) cut_network "$1" in; cut_network "$1" out ;;
  *) fail "cut: the direction is in or out, or none is named for both, not '$2'" ;;
  esac
  say "node-$1 is cut off (${2:-both ways})"
}

slow_modules() { # N RATE
  need_power "$@"
  [[ ${2:-} =~ ^[0-9]+[kmg]bit$ ]] || fail "slow: name a rate such as 10mbit, not '${2:-}'"
  slow_network "$1" "$2"
  say "node-$1 has $2 each way"
}

heal_modules() { need_power "$@"; heal_network "$1"; say "the network of node-$1 is whole"; } # N

# The disk of the kubelet, and of the volumes of pods. (df knows no file system of another mount namespace, stat does.)
fill_modules() { # N [PERCENT]: leave that little of the disk free; 1 unless named
  need_power "$@"
  local filler size total available left=${2:-1}
  [[ $left =~ ^[0-9]+$ ]] || fail "fill: name how many percent are to stay free, not '$left'"
  filler=/proc/$(first_process "$1")/root/var/lib/kubelet/filler
  rm -f "$filler"
  read -r size total available < <(stat -f -c '%S %b %a' "${filler%/*}")
  available=$((available - total * left / 100))
  [ "$available" -le 0 ] || fallocate -l $((available * size)) "$filler"
  say "the disk of node-$1 is full but for $left %"
}

free_modules() { need_power "$@"; rm -f "/proc/$(first_process "$1")/root/var/lib/kubelet/filler"; say "the disk of node-$1 is freed"; } # N

cordon_modules() { need_node "$@"; kubectl cordon "node-$1"; }     # N
uncordon_modules() { need_node "$@"; kubectl uncordon "node-$1"; } # N

drain_modules() { # N [kubectl's options]
  need_node "$@"
  kubectl drain "node-$1" --ignore-daemonsets --delete-emptydir-data "${@:2}"
}

on_modules() { need_power "$@"; on_node "$@"; } # N COMMAND...

# --- parts: etcd, kube-apiserver, kube-controller-manager, kube-scheduler; and PART-N of node N: containerd, kubelet, ...

is_node_part() { is_node "${1##*-}" && [[ " ${NODE_PARTS[*]} " == *" ${1%-*} "* ]]; } # PART-N

stop_modules() { # PART [SIGNAL]
  if is_node_part "${1:-}"; then
    stop_node_part "${1##*-}" "${1%-*}" "${2:-TERM}"
  elif [[ " ${CONTROL_PLANE[*]} " == *" ${1:-} "* ]]; then
    stop "$1" "${2:-TERM}"
  else
    fail "$command: no part is called '${1:-}'; there are ${CONTROL_PLANE[*]}, and with a node's number ${NODE_PARTS[*]/%/-1}"
  fi
}

start_modules() { # PART
  if is_node_part "${1:-}"; then
    start_node_part "${1##*-}" "${1%-*}"
  elif [[ " ${CONTROL_PLANE[*]} " == *" ${1:-} "* ]]; then
    start_part "$1"
    [ "$1" != kube-apiserver ] || wait_for 60 "the API server" kubectl get --raw /readyz
  else
    stop_modules "${1:-}" # says which there are
  fi
}

restart_modules() { # PART [SIGNAL]
  stop_modules "$@"
  start_modules "$1"
  wait_for 60 "the API server" kubectl get --raw /readyz # which needs etcd, too
}
