# shellcheck shell=bash
# Nodes: each is one tree of processes in namespaces of its own (network, mounts, processes, host name), on its own disk.
# Killing its first process is a power cut, starting it again a reboot. To be sourced after network.sh and machine.sh;
# what runs inside is node_boot.sh.

NODES=${OUTLAST_CLUSTER_NODES:-3}
NODE_PARTS=(containerd kubelet kube-proxy kube-router)
DISK_SIZE=8G # of a node's kubelet, sparse: pods' volumes (emptyDir, local-path) lie on it, images and logs do not

node_folder() { echo "$RUN/node-$1"; } # N

power_on() { # N: unless it runs
  local n=$1 name=node-$1 folder
  is_running "$name" && return
  power_off "$n" # what a crash has left of it
  folder=$(node_folder "$n")
  mkdir -p "$folder"/{cni,pods,containers,log,stopped}
  if [ ! -f "$folder/kubelet.img" ]; then
    truncate -s "$DISK_SIZE" "$folder/kubelet.img"
    mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 "$folder/kubelet.img"
  fi
  [ -d "$folder/containerd" ] || link_store "$folder"
  rm -rf "$folder"/stopped/*
  make_node_network "$n"
  make_cgroup "$name"
  # --kill-child and a PID namespace: when the first process ends, all others on the node do.
  spawn "$name" nsenter --net="/run/netns/$(node_namespace "$n")" \
    unshare --mount --pid --uts --fork --kill-child=KILL --mount-proc "$SCRIPTS/node_boot.sh" "$n" "$NODES"
}

power_off() { # N: at once, without a word to anybody
  local n=$1
  ip link delete "$(node_cable "$n")" 2>/dev/null || true # before the kernel closes the connections of what is killed
  # By its command as well: whoever started it may have been killed before its number was written down.
  stop "node-$n" KILL
  pkill -KILL -f "/scripts/cluster/node_boot\.sh $n [0-9]+\$" || true
  remove_node_network "$n"
  remove_cgroup "node-$n"
}

first_process() { pgrep -P "$(pid_of "node-$1")" | head -n 1; } # N: its process 1, by its number outside

on_node() { # N, command...: inside the node, with the cluster's programs on PATH
  local n=$1 path
  shift
  is_running "node-$n" || fail "node-$n has no power; give it some: cluster.sh power-on $n"
  path=$(folder_of containerd):$(kubernetes_folder):$(folder_of kube-router):$PATH
  nsenter -t "$(first_process "$n")" -m -p -u -n env PATH="$path" "$@"
}

node_part_process() { # N, part: its number outside
  pgrep --ns "$(first_process "$1")" --nslist pid -x "$2" | head -n 1
}

# A part that ends is started again a second later by the node's process 1, unless it is stopped.
stop_node_part() { # N, part, signal
  local pid
  touch "$(node_folder "$1")/stopped/$2"
  pid=$(node_part_process "$1" "$2") || return 0
  kill -"$3" "$pid" && wait_for 60 "the end of $2 on node-$1" is_pid_gone "$pid"
}

start_node_part() { # N, part
  rm -f "$(node_folder "$1")/stopped/$2"
  wait_for 10 "$2 on node-$1" node_part_process "$1" "$2"
}

is_pid_gone() { [ ! -d "/proc/$1" ]; }

nodes_ready() {
  local ready
  ready=$(kubectl get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}')
  [ "$(grep -c True <<<"$ready")" -ge "$NODES" ]
}
