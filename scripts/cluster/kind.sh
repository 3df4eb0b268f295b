# shellcheck shell=bash
# The provider kind: a cluster in docker; to be sourced after lib.sh and tools.sh.

KIND_NAME=outlast

can_use_kind() { command -v kind >/dev/null && command -v docker >/dev/null && docker info >/dev/null 2>&1; }

prepare_kind() { :; } # docker pulls the node's image when the cluster is made

up_kind() {
  can_use_kind || fail "the provider kind needs docker, answering, and kind on PATH"
  kind get clusters 2>/dev/null | grep -qx "$KIND_NAME" || {
    # The tests' trainer pods mount the Python environment and this repository from the machine, below /host, and write
    # to a folder of the tests (tests/e2e/e2e_environment.py).
    local prefix work=${OUTLAST_E2E_WORK:-/var/tmp/outlast-e2e}
    prefix=$("$REPOSITORY/.venv/bin/python" -c 'import sys; print(sys.base_prefix)')
    mkdir -p "$work"
    {
      printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n  - role: control-plane\n    extraMounts:\n'
      local path
      for path in "$prefix" "$(readlink -f "$REPOSITORY/.venv")" "$REPOSITORY" /usr/share/datasets; do
        [ ! -e "$path" ] || printf '      - {hostPath: "%s", containerPath: "/host%s", readOnly: true}\n' "$path" "$path"
      done
      printf '      - {hostPath: "%s", containerPath: "/host%s"}\n' "$work" "$work"
    } >"$STATE/kind.yaml"
    kind create cluster --name "$KIND_NAME" --config "$STATE/kind.yaml" --kubeconfig "$KUBECONFIG_FILE" --wait 120s
  }
  kind export kubeconfig --name "$KIND_NAME" --kubeconfig "$KUBECONFIG_FILE"
}

down_kind() {
  kind delete cluster --name "$KIND_NAME" --kubeconfig "$KUBECONFIG_FILE"
  rm -f "$KUBECONFIG_FILE" "$STATE/kind.yaml"
  rm -rf "$STATE/loaded" # the marks of images that went with the cluster
}

is_up_kind() { kind get clusters 2>/dev/null | grep -qx "$KIND_NAME"; }

status_kind() { kind get nodes --name "$KIND_NAME"; }

load_kind() {
  local archive
  for archive; do kind load image-archive "$archive" --name "$KIND_NAME"; done
}

restart_kind() { docker exec "$KIND_NAME-control-plane" pkill -x "$1"; } # the kubelet starts it again
