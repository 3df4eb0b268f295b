# shellcheck shell=bash
# The nodes' network; to be sourced after lib.sh. A bridge of this machine joins the nodes; each has a network namespace
# and a cable (veth) to the bridge. This machine is 10.89.0.1, node N is 10.89.0.1N, its pods are in 10.244.N.0/24, and
# all of them reach each other without translation of addresses.

BRIDGE=outlast0
NETWORK=10.89.0
POD_NETWORK=10.244
HOST_ADDRESS=$NETWORK.1

node_address() { echo "$NETWORK.1$1"; }     # N
node_namespace() { echo "outlast-node-$1"; } # N
node_cable() { echo "outlast-$1"; }          # N: this machine's end

make_bridge() {
  ip link show "$BRIDGE" >/dev/null 2>&1 || ip link add "$BRIDGE" type bridge
  ip address replace "$HOST_ADDRESS/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  sysctl -qw net.ipv4.ip_forward=1
}

make_node_network() { # N
  local n=$1 namespace address i
  namespace=$(node_namespace "$n") address=$(node_address "$n")
  remove_node_network "$n"
  ip netns add "$namespace"
  # Always the same hardware address: other nodes remember it over a power cut.
  ip link add "$(node_cable "$n")" type veth peer name eth0 address "02:00:0a:59:00:1$n" netns "$namespace"
  ip link set "$(node_cable "$n")" master "$BRIDGE" up
  ip -n "$namespace" link set lo up
  ip -n "$namespace" address add "$address/24" dev eth0
  ip -n "$namespace" link set eth0 up
  ip -n "$namespace" route add default via "$HOST_ADDRESS"
  for i in $(seq "$NODES"); do
    [ "$i" = "$n" ] || ip -n "$namespace" route add "$POD_NETWORK.$i.0/24" via "$(node_address "$i")"
  done
  ip netns exec "$namespace" sysctl -qw net.ipv4.ip_forward=1
  ip route replace "$POD_NETWORK.$n.0/24" via "$address"
}

# The cable goes first: nothing that ends afterwards may say good-bye to its peers, as no power cut does.
remove_node_network() { # N
  ip link delete "$(node_cable "$1")" 2>/dev/null || true
  [ ! -e "/run/netns/$(node_namespace "$1")" ] || ip netns delete "$(node_namespace "$1")"
}

# Both directions are dropped where packets come in: on the way into the node at its end of the cable, on the way out at
# this machine's. No sender learns of it.
cut_network() { # N, direction: in or out
  local device=eth0 within=(ip netns exec "$(node_namespace "$1")")
  [ "$2" = in ] || device=$(node_cable "$1") within=()
  "${within[@]}" nft -f - <<NFT
table netdev outlast-cut-$1 { }
delete table netdev outlast-cut-$1
table netdev outlast-cut-$1 {
  chain cut { type filter hook ingress device "$device" priority 0; policy drop; }
}
NFT
}

slow_network() { # N, rate: both directions
  local shape=(root tbf rate "$2" burst 64kb latency 200ms)
  tc qdisc replace dev "$(node_cable "$1")" "${shape[@]}"
  tc -n "$(node_namespace "$1")" qdisc replace dev eth0 "${shape[@]}"
}

heal_network() { # N: neither cut nor slow
  local table="table netdev outlast-cut-$1"
  printf '%s { }\ndelete %s\n' "$table" "$table" | nft -f -
  printf '%s { }\ndelete %s\n' "$table" "$table" | ip netns exec "$(node_namespace "$1")" nft -f -
  tc qdisc delete dev "$(node_cable "$1")" root 2>/dev/null || true
  tc -n "$(node_namespace "$1")" qdisc delete dev eth0 root 2>/dev/null || true
}

remove_network() {
  local namespace
  for namespace in /run/netns/outlast-node-*; do
    [ ! -e "$namespace" ] || remove_node_network "${namespace##*-}"
  done
  ip link delete "$BRIDGE" 2>/dev/null || true
}
