# shellcheck shell=bash
# containerd, the kubelet, kube-proxy and the cluster's DNS on this machine; to be sourced after control_plane.sh.

NODE_NAME=outlast-node
PAUSE_IMAGE=registry.k8s.io/pause:3.2

ctr() { command ctr -a "$CONTAINERD_SOCKET" -n k8s.io "$@"; }

start_containerd() {
  mkdir -p "$RUN/cni"
  # ptp, not bridge: every packet between pods is routed by this machine, so that Services between them work without
  # br_netfilter, and a pod's network leaves nothing behind but its veth, which goes with it.
  put "$RUN/cni/10-pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "outlast-pods", "plugins": [
  {"type": "ptp", "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "$RUN/cni-addresses", "ranges": [[{"subnet": "10.244.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  # restrict_oom_score_adj: root without CAP_SYS_RESOURCE starts no pod otherwise
  # ("runc create failed: ... can't get final child's PID from pipe").
  put "$RUN/containerd.toml" <<TOML
version = 2
root = "$RUN/containerd"
state = "$RUN/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
TOML
  spawn containerd containerd --config "$RUN/containerd.toml"
  wait_for 30 containerd ctr version
}

load_pause_image() {
  [ -n "$(ctr images ls -q name=="$PAUSE_IMAGE")" ] && return
  python3 "$REPOSITORY/scripts/cluster/pause_image.py" "$BINARIES/pause" "$PAUSE_IMAGE" "$RUN/pause.tar"
  ctr images import "$RUN/pause.tar" >/dev/null
  rm -f "$RUN/pause.tar"
}

start_kubelet() {
  printf 'nameserver %s\n' "$DNS_ADDRESS" | put "$RUN/resolv.conf" # of pods that ask for the node's: no search domains
  put "$RUN/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: $KUBELET_PORT
healthzPort: 0
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/keys/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: ["$DNS_ADDRESS"]
clusterDomain: cluster.local
resolvConf: $RUN/resolv.conf
volumePluginDir: $RUN/volume-plugins
maxPods: 200
# A pod that is deleted while its container is being made is looked at again after this long; 1m is usual.
syncFrequency: 10s
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
YAML
  spawn kubelet "$BINARIES/kubelet" --config="$RUN/kubelet.yaml" --kubeconfig="$KUBECONFIG_FILE" --cert-dir="$RUN/keys" \
    --hostname-override="$NODE_NAME" --node-ip="$NODE_ADDRESS" --container-runtime=remote \
    --container-runtime-endpoint="unix://$CONTAINERD_SOCKET" --root-dir="$RUN/kubelet"
}

start_kube_proxy() {
  put "$RUN/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $KUBECONFIG_FILE}
clusterCIDR: $POD_RANGE
mode: iptables
iptables: {minSyncPeriod: 0s, syncPeriod: 30s}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
metricsBindAddress: 127.0.0.1:$PROXY_METRICS_PORT
healthzBindAddress: 127.0.0.1:$PROXY_HEALTH_PORT
hostnameOverride: $NODE_NAME
YAML
  [ ! "$RUN/kube-proxy.yaml" -nt "$RUN/pids/kube-proxy" ] || stop kube-proxy # it would end by itself, a little later
  spawn kube-proxy "$BINARIES/kube-proxy" --config="$RUN/kube-proxy.yaml"
  wait_for 30 kube-proxy is_port_taken "$PROXY_HEALTH_PORT"
}

start_dns() { # dnsmasq answers; dns.py tells it, from the API, what there is to answer
  touch "$RUN/hosts"
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $DNS_ADDRESS
  ports: [{name: dns, protocol: UDP, port: 53, targetPort: $DNS_PORT}, {name: dns-tcp, protocol: TCP, port: 53, targetPort: $DNS_PORT}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: kube-dns, namespace: kube-system}
subsets:
  - addresses: [{ip: $NODE_ADDRESS}]
    ports: [{name: dns, protocol: UDP, port: $DNS_PORT}, {name: dns-tcp, protocol: TCP, port: $DNS_PORT}]
YAML
  # Nothing is asked outside the cluster: a name that is not there yet must fail at once, not after a time-out.
  spawn dnsmasq dnsmasq --keep-in-foreground --log-facility=- --conf-file=/dev/null --pid-file= --no-hosts --no-resolv \
    --bind-interfaces --listen-address="$NODE_ADDRESS" --port="$DNS_PORT" --addn-hosts="$RUN/hosts" \
    --local=/cluster.local/ --user=root --cache-size=0
  wait_for 10 dnsmasq is_answering # a signal before it is ready would end it
  spawn dns python3 "$REPOSITORY/scripts/cluster/dns.py" --kubeconfig "$KUBECONFIG_FILE" --hosts "$RUN/hosts" \
    --dnsmasq-pid "$RUN/pids/dnsmasq"
}

is_answering() { ss -H -lun "sport = :$DNS_PORT" | grep -q .; }

is_node_ready() { kubectl get node "$NODE_NAME" | grep -q ' Ready'; }
