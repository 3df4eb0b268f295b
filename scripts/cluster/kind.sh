# shellcheck shell=bash
# The provider kind: a cluster in docker; to be sourced after lib.sh and tools.sh.

KIND_NAME=outlast

can_use_kind() { command -v kind >/dev/null && command -v docker >/dev/null && docker info >/dev/null 2>&1; }

prepare_kind() { :; } # docker pulls the node's image when the cluster is made

up_kind() {
  can_use_kind || fail "the provider kind needs docker, answering, and kind on PATH"
  kind get clusters 2>/dev/null | grep -qx "$KIND_NAME" || {
    printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes: [{role: control-plane}, {role: worker}, {role: worker}]\n' >"$STATE/kind.yaml"
    kind create cluster --name "$KIND_NAME" --config "$STATE/kind.yaml" --kubeconfig "$KUBECONFIG_FILE" --wait 120s
  }
  kind export kubeconfig --name "$KIND_NAME" --kubeconfig "$KUBECONFIG_FILE"
  local archives
  mapfile -t archives < <(find "$STATE/images" -name '*.tar' 2>/dev/null)
  load_kind "${archives[@]}"
}

down_kind() {
  kind delete cluster --name "$KIND_NAME" --kubeconfig "$KUBECONFIG_FILE"
  rm -f "$KUBECONFIG_FILE" "$STATE/kind.yaml"
  rm -rf "$STATE/loaded" # the marks of images that went with the cluster
}

is_up_kind() { kind get clusters 2>/dev/null | grep -qx "$KIND_NAME"; }

status_kind() { kind get nodes --name "$KIND_NAME"; }

kubelets_kind() { # of nodes whose processes this machine sees
  local node
  for node in $(kind get nodes --name "$KIND_NAME" 2>/dev/null); do
    echo "$node /proc/$(docker inspect -f '{{.State.Pid}}' "$node")/root/var/lib/kubelet"
  done
}

load_kind() { # archive...: those that it has not got
  local archive
  mkdir -p "$STATE/loaded"
  for archive; do
    [ ! -e "$STATE/loaded/${archive##*/}" ] || continue
    kind load image-archive "$archive" --name "$KIND_NAME"
    touch "$STATE/loaded/${archive##*/}"
  done
}

restart_kind() { docker exec "$KIND_NAME-control-plane" pkill -x "$1"; } # the kubelet starts it again
