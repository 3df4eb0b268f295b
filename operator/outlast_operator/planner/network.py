"""What the network does not let through, by direction: for the condition NetworkOpen.

Rules. (1) Each direction has its own evidence: a server's container runs and it has told the operator nothing; a
server's link to its neighbour does not stand though both speak to the operator; a worker's process runs and no head
has ever had a connection of it; of the operator and a head Redis answers one alone. (2) None of them proves a policy or
a firewall (a server may still be starting, a worker loading its data), so the message says what is seen and where to
look.
"""

from __future__ import annotations

from outlast_operator.planner.reach import reachable, slot_of
from outlast_operator.planner.redis_contact import answers_a_server, heads_without
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard

NETWORK = "NetworkOpen"
SEEN_S = 8.0
OPEN = "every connection that the job needs is established"
REMEDY = "check NetworkPolicies, firewalls and the pods' logs"


def blocked(turn: Turn, shards: list[Shard]) -> tuple[str, str]:
    """(reason, message) of the connections that fail; empty where none does."""
    operator = [p.name for p in reachable(turn, "server") if turn.lasted(f"unheard:{p.instance}", p.unheard, SEEN_S)]
    links = [pair for s in shards for pair in _broken_links(s)]
    workers = [
        p.name
        for p in reachable(turn, "worker")
        if turn.lasted(f"unheard:{p.instance}", p.phase == "running" and _is_unheard(shards, slot_of(p)), SEEN_S)
    ]
    up = turn.observed.redis.up
    redis = "Redis (port 6379)" if turn.spec.own_redis else "the Redis at recovery.buffer.url"
    operator_alone = turn.lasted("redis unheard", not up and answers_a_server(turn), SEEN_S)
    heads = heads_without(turn, shards, SEEN_S) if up else []
    findings: list[tuple[str, str, object]] = [
        ("OperatorToServer", f"the operator to {', '.join(operator)} (port 7070)", operator),
        ("ServerToServer", f"{', '.join(links)} (port 7070)", links),
        ("WorkerToServer", f"{', '.join(workers)} to the servers (port 7070)", workers),
        ("OperatorToRedis", f"the operator to {redis}", operator_alone),
        ("ServerToRedis", f"{', '.join(heads)} to {redis}", heads),
    ]
    found = [(reason, words) for reason, words, what in findings if what]
    if not found:
        return _still_blocked(turn)
    return found[0][0], f"not connected: {'; '.join(words for _, words in found)}; {REMEDY}"


def _broken_links(s: Shard) -> list[str]:
    """The planner gives such a link some seconds, then drops a member: no more need to be waited for here."""
    names = {boot: st.member.name for boot, st in s.standings.items()}
    told = [(st.member.name, st.probe.broken) for st in s.standings.values() if st.probe is not None and st.well]
    return [f"{name} to {names[boot]}" for name, broken in told for boot in broken if boot in names]


def _still_blocked(turn: Turn) -> tuple[str, str]:
    """While the server that was dropped for its links is started anew nothing is known of them, but what was seen."""
    before = next((c for c in turn.recorded.conditions if c.type == NETWORK), None)
    seen = before is not None and before.reason == "ServerToServer"
    short = any(len(view.members) < turn.spec.servers.replicas for view in turn.status.views.values())
    return (before.reason, before.message) if before is not None and seen and short else ("", "")


def _is_unheard(shards: list[Shard], slot: int) -> bool:
    """Whether each shard has a head that tells of connections, and one of them has never had any of this slot."""
    heads = [s.head for s in shards]
    if any(h is None or h.connected is None for h in heads):
        return False
    return any(h is not None and slot not in (h.connected or ()) and slot not in h.absent for h in heads)
