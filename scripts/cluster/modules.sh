# shellcheck shell=bash
# The provider modules: a Kubernetes of several nodes on this machine, built from Go modules; to be sourced last.

NEEDED=(etcd kubernetes containerd pause coredns local-path-provisioner kube-router) # in the order of need
CONTROL_PLANE=(etcd kube-apiserver kube-controller-manager kube-scheduler)
CONTROL_ADDRESS=127.0.89.1 # of what no pod must reach; no other program of this machine uses it
SERVER=https://$HOST_ADDRESS:6443

can_use_modules() { [ "$(id -u)" = 0 ] && [ "$(uname -sm)" = "Linux x86_64" ]; }

prepare_modules() {
  can_use_modules || fail "the provider modules needs root on Linux, x86-64"
  apt_install runc containernetworking-plugins iptables nftables ipset conntrack iproute2 socat ethtool procps kmod openssl \
    e2fsprogs busybox-static
  local program
  for program in "${NEEDED[@]}"; do
    [ "$program" != kubernetes ] || program=$(kubernetes_program)
    build_program "$program"
  done
  make_system_images
  mkdir -p "$TOOLS"
  ln -sfn "$(kubernetes_folder)/kubectl" "$TOOLS/kubectl"
}

up_modules() {
  local started n release archives
  release=$(kubernetes_program) || exit 1
  [ ! -f "$RUN/release" ] || [ "$(cat "$RUN/release")" = "$release" ] ||
    fail "a cluster of another release runs ($(version_of "$(cat "$RUN/release")")); end it first: cluster.sh down"
  prepare_modules
  started=$SECONDS
  mkdir -p "$RUN/log" "$RUN/pids"
  echo "$release" >"$RUN/release"
  note_machine
  make_bridge
  make_keys "IP:$HOST_ADDRESS,IP:10.96.0.1"
  write_kubeconfigs
  start_part etcd
  start_part kube-apiserver
  mapfile -t archives < <(find "$SYSTEM_IMAGES" "$STATE/images" -name '*.tar' 2>/dev/null)
  fill_store "${archives[@]}"
  wait_for 60 "the API server" kubectl get --raw /readyz
  start_part kube-controller-manager
  start_part kube-scheduler
  each_node power_on
  load_into_nodes "${archives[@]}"
  wait_for 30 "the namespace kube-system" kubectl get namespace kube-system
  kubectl apply -f "$SCRIPTS/addons.yaml" >"$RUN/log/addons.log"
  wait_for 90 "$NODES nodes that are ready" nodes_ready
  say "$NODES nodes ready after $((SECONDS - started)) s"
  for n in kube-system/coredns local-path-storage/local-path-provisioner; do
    kubectl rollout status "deployment/${n#*/}" -n "${n%/*}" --timeout=90s >/dev/null ||
      fail "$n did not become ready; see: kubectl describe pods -n ${n%/*}"
  done
  wait_for 30 "the default service account" kubectl get serviceaccount default
  say "ready after $((SECONDS - started)) s: export KUBECONFIG=$KUBECONFIG_FILE PATH=$TOOLS:\$PATH"
}

each_node() { # command...: for all nodes at once, with the number of each
  local n running=()
  for n in $(seq "$NODES"); do
    "$@" "$n" &
    running+=($!)
  done
  for n in "${running[@]}"; do wait "$n"; done
}

write_kubeconfigs() {
  [ ! -f "$KUBECONFIG_FILE" ] || return 0
  local name
  for name in kube-controller-manager kube-scheduler kube-proxy kube-router; do write_kubeconfig_of $name "/CN=system:$name"; done
  for name in $(seq -f node-%g "$NODES"); do write_kubeconfig_of "$name" "/O=system:nodes/CN=system:node:$name"; done
  write_kubeconfig "$KUBECONFIG_FILE" "$SERVER" admin
}

write_kubeconfig_of() { # name, subject
  (cd "$RUN/keys" && sign "$1" "$2") >>"$RUN/log/keys.log" 2>&1
  write_kubeconfig "$RUN/$1.kubeconfig" "$SERVER" "$1"
}

start_part() { # name: of the control plane
  local keys=$RUN/keys
  case $1 in
  etcd) start_etcd "$CONTROL_ADDRESS" ;;
  kube-apiserver) # which lives outside the nodes and so reaches webhooks by their pods' addresses
    start_api_server "$HOST_ADDRESS" "$CONTROL_ADDRESS" --kubelet-client-certificate="$keys/admin.crt" \
      --kubelet-client-key="$keys/admin.key" --kubelet-preferred-address-types=InternalIP \
      --requestheader-client-ca-file="$keys/ca.crt" --requestheader-allowed-names=front-proxy \
      --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
      --requestheader-extra-headers-prefix=X-Remote-Extra- --proxy-client-cert-file="$keys/front-proxy.crt" \
      --proxy-client-key-file="$keys/front-proxy.key" --enable-aggregator-routing=true
    ;;
  kube-controller-manager) start_controller_manager "$RUN/$1.kubeconfig" --bind-address="$CONTROL_ADDRESS" --node-monitor-grace-period=20s ;;
  kube-scheduler)
    spawn "$1" "$(kubernetes_folder)/$1" --kubeconfig="$RUN/$1.kubeconfig" --leader-elect=false --bind-address="$CONTROL_ADDRESS"
    ;;
  esac
}

down_modules() {
  [ -d "$RUN" ] || return 0
  local name started=$SECONDS
  NODES=$(find "$RUN" -maxdepth 1 -name 'node-?' | wc -l) # as many as were made
  each_node power_off
  # Killed: told to end, the API server would first wait a minute for its watches.
  for name in "${CONTROL_PLANE[@]}" containerd-store; do stop "$name" KILL; done
  end_strays
  remove_network
  restore_machine
  rm -rf --one-file-system "$RUN" "$KUBECONFIG_FILE" "$STORE/state" "$STORE"/containerd.sock*
  say "down after $((SECONDS - started)) s"
}

end_strays() { # programs of ours that run in $RUN and are in no list: what started them was killed in between
  local process
  for process in /proc/[0-9]*; do
    case $(readlink "$process/exe") in "$BIN"/*) ;; *) continue ;; esac
    [ "$(readlink "$process/cwd")" != "$RUN" ] || kill -KILL "${process##*/}" 2>/dev/null || true
  done
}

is_up_modules() { is_running kube-apiserver && is_running node-1; }

status_modules() {
  local name n part pid
  for name in "${CONTROL_PLANE[@]}"; do
    if is_running "$name"; then echo "$name: pid $(pid_of "$name")"; else echo "$name: not running"; fi
  done
  for n in $(seq "$NODES"); do
    is_running "node-$n" || { echo "node-$n: not running"; continue; }
    for part in "${NODE_PARTS[@]}"; do
      pid=$(node_part_process "$n" "$part") || pid=
      echo "$part-$n: ${pid:+pid }${pid:-not running}"
    done
  done
}

kubelets_modules() {
  local n
  for n in $(seq "$NODES"); do
    ! is_running "node-$n" || echo "node-$n /proc/$(first_process "$n")/root/var/lib/kubelet"
  done
}

load_modules() {
  is_up_modules || fail "load: the cluster is down; what lies in $STATE/images is loaded when it comes up"
  fill_store "$@"
  load_into_nodes "$@"
}
