# shellcheck shell=bash
# etcd, the API server, the controller manager and the scheduler; to be sourced after lib.sh and tools.sh.

SERVICE_RANGE=10.96.0.0/16
POD_RANGE=10.244.0.0/16
DNS_ADDRESS=10.96.0.10

node_address() { # the machine's first address that is no pod network's
  ip -4 -o address show scope global up | awk '$2 !~ /^(veth|cni|docker|virbr)/ { sub("/.*", "", $4); print $4; exit }'
}

is_port_taken() { ss -H -ltn "sport = :$1" | grep -q .; }

choose_ports() { # once for a cluster's life: the customary ports where they are free, else others
  [ -f "$RUN/ports" ] && { . "$RUN/ports"; return; }
  local name port
  for name in API:6443 ETCD:2379 ETCD_PEER:2380 KUBELET:10250 PROXY_METRICS:10249 PROXY_HEALTH:10256 DNS:10053; do
    port=${name#*:}
    while is_port_taken "$port"; do port=$((port + 20000 > 60000 ? 20001 + RANDOM % 20000 : port + 20000)); done
    printf '%s_PORT=%s\n' "${name%:*}" "$port"
  done >"$RUN/ports.new"
  mv "$RUN/ports.new" "$RUN/ports"
  . "$RUN/ports"
}

sign() { # name, subject, [alternative names]: a key and a certificate of the cluster's authority
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$1.crt" -days 3650 \
    -extfile <(printf 'subjectAltName=%s\n' "${3:-DNS:$1}")
}

make_keys() {
  [ -f "$RUN/keys/complete" ] && return
  rm -rf "$RUN/keys"
  mkdir -p "$RUN/keys"
  (
    umask 077
    cd "$RUN/keys"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=outlast-cluster -days 3650
    sign apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:10.96.0.1,IP:$NODE_ADDRESS,DNS:localhost,DNS:kubernetes.default.svc"
    sign admin /O=system:masters/CN=admin
    openssl genrsa -out accounts.key 2048
  ) >"$RUN/log/keys.log" 2>&1 || fail "making the keys failed; see $RUN/log/keys.log"
  touch "$RUN/keys/complete"
}

write_kubeconfig() {
  local keys=$RUN/keys
  (
    umask 077
    put "$KUBECONFIG_FILE" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: outlast
    cluster: {server: "https://127.0.0.1:$API_PORT", certificate-authority-data: $(base64 -w0 "$keys/ca.crt")}
users:
  - name: admin
    user: {client-certificate-data: $(base64 -w0 "$keys/admin.crt"), client-key-data: $(base64 -w0 "$keys/admin.key")}
contexts:
  - {name: outlast, context: {cluster: outlast, user: admin}}
current-context: outlast
YAML
  )
}

start_etcd() {
  local client=http://127.0.0.1:$ETCD_PORT peer=http://127.0.0.1:$ETCD_PEER_PORT
  spawn etcd etcd --data-dir "$RUN/etcd" --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" --logger zap
}

start_api_server() {
  local keys=$RUN/keys
  spawn kube-apiserver "$BINARIES/kube-apiserver" --etcd-servers="http://127.0.0.1:$ETCD_PORT" \
    --secure-port="$API_PORT" --advertise-address="$NODE_ADDRESS" --cert-dir="$keys" \
    --tls-cert-file="$keys/apiserver.crt" --tls-private-key-file="$keys/apiserver.key" --client-ca-file="$keys/ca.crt" \
    --kubelet-client-certificate="$keys/admin.crt" --kubelet-client-key="$keys/admin.key" \
    --kubelet-preferred-address-types=InternalIP --allow-privileged=true --authorization-mode=Node,RBAC \
    --service-account-key-file="$keys/accounts.key" --service-account-signing-key-file="$keys/accounts.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range="$SERVICE_RANGE"
  wait_for 60 "the API server" kubectl get --raw /readyz
}

start_controllers() {
  spawn kube-controller-manager "$BINARIES/kube-controller-manager" --kubeconfig="$KUBECONFIG_FILE" --leader-elect=false \
    --port=0 --secure-port=0 --service-account-private-key-file="$RUN/keys/accounts.key" --root-ca-file="$RUN/keys/ca.crt" \
    --use-service-account-credentials=true --allocate-node-cidrs=true --cluster-cidr="$POD_RANGE" \
    --node-monitor-grace-period=20s
  spawn kube-scheduler "$BINARIES/kube-scheduler" --kubeconfig="$KUBECONFIG_FILE" --leader-elect=false --port=0 --secure-port=0
}
