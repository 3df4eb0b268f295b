#!/usr/bin/env bash
# The first process of a node, inside the node's namespaces: node_boot.sh N NODES. It mounts what is the node's own over
# what is the machine's, starts the node's programs, starts again what ends, and reaps orphans.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
. "$here/lib.sh"
. "$here/programs.sh"
. "$here/control_plane.sh"
. "$here/network.sh"
. "$here/store.sh"
n=$1 name=node-$1
folder=$RUN/$name
release=$(kubernetes_program)
PATH=$(folder_of containerd):$(folder_of "$release"):$(folder_of kube-router):$PATH

mount_own() {
  mount --make-rprivate /
  if mountpoint -q /run/netns; then umount -l /run/netns; fi # copies of other nodes' namespaces would keep those alive
  mount -o loop "$folder/kubelet.img" /var/lib/kubelet
  mount -t tmpfs -o mode=0711 tmpfs /run/containerd
  mount -t tmpfs -o mode=0755 tmpfs /run/netns
  mount --bind "$folder/containerd" /var/lib/containerd
  mount --bind "$folder/cni" /var/lib/cni
  mount --bind "$folder/pods" /var/log/pods
  mount --bind "$folder/containers" /var/log/containers
  mount --make-rshared /
}

write_containerd_files() {
  # ptp, not bridge: every packet between pods is routed by the node, where Services and NetworkPolicies are made to
  # hold, without br_netfilter.
  mkdir -p "$folder/cni-conf"
  cat >"$folder/cni-conf/10-pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_NETWORK.$n.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  # restrict_oom_score_adj: root without CAP_SYS_RESOURCE starts no pod otherwise
  # ("runc create failed: ... can't get final child's PID from pipe").
  cat >"$folder/containerd.toml" <<TOML
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$PAUSE_IMAGE"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$folder/cni-conf"
TOML
}

# The image store is the machine's disk, whose filling is no concern of a node: imagefs by size, not by share.
write_kubelet_file() {
  cat >"$folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /$name
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/keys/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: ["$DNS_ADDRESS"]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {memory.available: 100Mi, nodefs.available: 10%, nodefs.inodesFree: 5%, imagefs.available: 1Gi}
evictionPressureTransitionPeriod: 10s # after it, pods come back to a disk that is free again
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
resolvConf: /dev/null
volumePluginDir: /var/lib/kubelet/volume-plugins
YAML
  # Of version 1 here and there; a field that 1.30 does not know.
  [ "$release" = kubernetes-oldest ] || echo "failCgroupV1: false" >>"$folder/kubelet.yaml"
}

write_kube_proxy_file() {
  local mode=nftables
  [ "$release" != kubernetes-oldest ] || mode=iptables # nftables was alpha in 1.30
  cat >"$folder/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/kube-proxy.kubeconfig}
clusterCIDR: $POD_NETWORK.0.0/16
conntrack: {maxPerCore: 0}
hostnameOverride: $name
mode: $mode
YAML
}

supervise() { # part, command...: as an init system does
  local part=$1
  shift
  while :; do
    [ -e "$folder/stopped/$part" ] || "$@" >>"$folder/log/$part.log" 2>&1 </dev/null || true
    sleep 1
  done &
}

hostname "$name"
mount_own
write_containerd_files
write_kubelet_file
write_kube_proxy_file
# A connection that a cut network leaves silent is given up after 15 s (45 s otherwise).
export HTTP2_READ_IDLE_TIMEOUT_SECONDS=10 HTTP2_PING_TIMEOUT_SECONDS=5
supervise containerd containerd --config "$folder/containerd.toml"
wait_for 30 containerd ctr version
supervise kube-proxy kube-proxy --config="$folder/kube-proxy.yaml"
supervise kubelet kubelet --config="$folder/kubelet.yaml" --kubeconfig="$RUN/$name.kubeconfig" --hostname-override="$name" \
  --node-ip="$(node_address "$n")"
supervise kube-router kube-router --kubeconfig="$RUN/kube-router.kubeconfig" --run-router=false --run-firewall=true \
  --run-service-proxy=false --hostname-override="$name" --health-port=0
wait # as process 1 of the namespace, bash reaps what shims leave behind
