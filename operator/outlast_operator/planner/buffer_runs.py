"""Stateless: which run of Redis holds each shard's state, as its heads tell.

Rules. (1) What is noted belongs to the recorded history: a rollback forgets it, and a head that has not followed yet is
not asked. (2) The last word of a head that is lost counts. (3) A head of an older trainer image does not tell; if it
holds a state, some run of Redis does.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast_operator.planner.status import UNKNOWN_RUN
from outlast_operator.planner.turn import Turn
from outlast_operator.planner.views import Shard


def note_buffer_runs(turn: Turn, shards: Sequence[Shard]) -> None:
    """To be called before views are planned: a server that is rebuilt is told what is known of Redis."""
    if turn.spec.traits.through_buffer:
        told = {s.shard: run for s in shards if (run := _told(s)) is not None}
        turn.record(buffer_runs={**turn.status.buffer_runs, **told})


def _told(s: Shard) -> str | None:
    if s.view is None or s.view.head is None:
        return None
    st = s.standings[s.view.head.boot]
    if st.probe is None or not st.confirms(s.view.epoch) or st.probe.history != s.view.history:
        return None
    if st.probe.buffer_run is None:
        return UNKNOWN_RUN if st.probe.initialised else None
    return st.probe.buffer_run or None
