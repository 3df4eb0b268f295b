# shellcheck shell=bash
# etcd, the API server, the controller manager and the scheduler; to be sourced after lib.sh, programs.sh and keys.sh.

SERVICE_RANGE=10.96.0.0/16
DNS_ADDRESS=10.96.0.10

kubernetes_folder() { folder_of "$(kubernetes_program)"; }

start_etcd() { # address, command...: what to start it by
  local client=http://$1:2379 peer=http://$1:2380
  shift
  # No fsync: what a crash of this machine would cost is a cluster for tests.
  spawn etcd "$@" "$(folder_of etcd)/etcd" --data-dir "$RUN/etcd" --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" --unsafe-no-fsync
}

start_api_server() { # address, address of etcd, more arguments... [-- command...]: what to start it by
  local keys=$RUN/keys address=$1 etcd=$2 more=()
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do more+=("$1"); shift; done
  shift || true
  spawn kube-apiserver "$@" "$(kubernetes_folder)/kube-apiserver" --etcd-servers="http://$etcd:2379" \
    --bind-address="$address" --secure-port=6443 --advertise-address="$address" --cert-dir="$keys" \
    --tls-cert-file="$keys/apiserver.crt" --tls-private-key-file="$keys/apiserver.key" --client-ca-file="$keys/ca.crt" \
    --service-account-key-file="$keys/accounts.key" --service-account-signing-key-file="$keys/accounts.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range="$SERVICE_RANGE" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true "${more[@]}"
}

start_controller_manager() { # kubeconfig, more arguments and command as above
  local kubeconfig=$1 more=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do more+=("$1"); shift; done
  shift || true
  spawn kube-controller-manager "$@" "$(kubernetes_folder)/kube-controller-manager" --kubeconfig="$kubeconfig" \
    --leader-elect=false --flex-volume-plugin-dir="$RUN/volume-plugins" --service-account-private-key-file="$RUN/keys/accounts.key" \
    --root-ca-file="$RUN/keys/ca.crt" --use-service-account-credentials=true "${more[@]}"
}
