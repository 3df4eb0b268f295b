# shellcheck shell=bash
# An API server alone, for tests: etcd and kube-apiserver, no nodes, no scheduler. To be sourced after control_plane.sh.
#
# Every instance has an address of its own in 127.0.0.0/8, made of its process id, and the customary ports there: any
# number run side by side, and no port is chosen that another program may take meanwhile.

api_server() { # folder [controllers]: until standard input ends or a signal comes
  [ $# -ge 1 ] || fail "api-server: name the folder for its data: cluster.sh api-server DIR [controllers]"
  local program tied address url controllers=${2:-}
  mkdir -p "$1"
  RUN=$(cd "$1" && pwd -P)
  program=$(kubernetes_program) || exit 1
  build_program etcd
  build_program "$program"
  command -v openssl >/dev/null || apt_install openssl
  # A folder that was used before keeps its address: its certificate names it.
  [ -f "$RUN/address" ] || echo "127.$((1 + $$ / 65536)).$(($$ / 256 % 256)).$(($$ % 256))" >"$RUN/address"
  address=$(cat "$RUN/address")
  url=https://$address:6443
  make_keys "IP:$address"
  write_kubeconfig "$RUN/kubeconfig" "$url" admin
  trap end_api_server EXIT
  trap 'exit 0' INT TERM HUP
  tied=(setpriv --pdeathsig KILL) # they end with this process, however it ends
  start_etcd "$address" "${tied[@]}"
  if [ "$controllers" = controllers ]; then
    start_api_server "$address" "$address" --endpoint-reconciler-type=none -- "${tied[@]}"
  else # nothing makes the service accounts that pods would need
    start_api_server "$address" "$address" --endpoint-reconciler-type=none --disable-admission-plugins=ServiceAccount -- \
      "${tied[@]}"
  fi
  wait_for 60 "the API server" api_server_answers || { tail -n 3 "$RUN/log/kube-apiserver.log" >&2; exit 1; }
  if [ "$controllers" = controllers ]; then
    start_controller_manager "$RUN/kubeconfig" --secure-port=0 -- "${tied[@]}"
  fi
  echo "$RUN/kubeconfig"
  while read -r _; do :; done
}

api_server_answers() { "$(kubernetes_folder)/kubectl" --kubeconfig "$RUN/kubeconfig" get --raw /readyz; }

end_api_server() {
  local status=$? name
  # Killed: told to end, the API server would first wait for its watches, and nothing here is worth that.
  for name in kube-controller-manager kube-apiserver etcd; do stop "$name" KILL; done
  exit "$status"
}
