"""report.json of a run, reckoned from what was observed and from nothing else. Pure.

Where the figures come from: *computed, acknowledged, buffered* from the workers' ledgers, as unique (slot, step);
*applied, duplicates* from the tables of the servers that survived; *lost* is what workers saw acknowledged, less what
those tables hold, less what was refused or left unread because the job had reached its goal (*unapplied_at_end*).
Failures: failures.py. What never came, or was never observed, is null.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from outlast.chain.applied import Applied
from outlast.chain.events import Identity
from outlast.process.ledger import Fact, LedgerRecord
from outlast_operator.local.run import Run
from outlast_operator.reporting.failures import failures, versions

SCHEMA = 1
SERIES_INTERVAL_S = 0.5
IDLE_FACTOR = 3.0  # a gap of more than three usual steps between two gradients of a slot is idleness


# --- gradients ---


def steps_of(ledger: Iterable[LedgerRecord], *facts: Fact) -> Applied:
    """The unique (slot, step) of which any worker recorded one of `facts`."""
    steps = Applied()
    for record in ledger:
        if record.fact in facts:
            _absorb(steps, Identity(record.slot, record.first, record.last))
    return steps


def _absorb(steps: Applied, identity: Identity) -> None:
    if steps.add(identity):
        return
    for step in range(identity.first, identity.last + 1):
        steps.add(Identity(identity.slot, step, step))


def surviving(tables: Mapping[int, Mapping[str, Any]], shards: int) -> Applied:
    """What every shard holds: a gradient that one shard lacks is not in the model. Empty if a shard has no table."""
    held: Applied | None = None
    for shard in range(shards):
        table = Applied.from_json(tables[shard].get("applied") or {}) if shard in tables else Applied()
        held = table if held is None else held.intersection(table)
    return held or Applied()


def unread(tables: Mapping[int, Mapping[str, Any]]) -> Applied:
    """What the servers found in the log and did not apply any more, the goal being reached."""
    steps = Applied()
    for table in tables.values():
        for slot, first, last in table.get("unread") or ():
            _absorb(steps, Identity(int(slot), int(first), int(last)))
    return steps


def count_gradients(run: Run) -> dict[str, int]:
    ledger = run.heard.ledger
    computed = steps_of(ledger, Fact.COMPUTED)
    buffered = steps_of(ledger, Fact.BUFFERED)
    acknowledged = buffered.union(steps_of(ledger, Fact.ACKNOWLEDGED))
    # Of what the tables hold, this run's own: a restored job's go further back.
    held = surviving(run.tables, run.spec.servers.shards).intersection(computed)
    refused = steps_of(ledger, Fact.UNAPPLIED).union(unread(run.tables)).difference(held)
    totals = [t.get("applied_total", 0) - Applied.from_json(t.get("applied") or {}).count for t in run.tables.values()]
    return {
        "computed": computed.count,
        "acknowledged": acknowledged.count,
        "applied": held.count,
        "buffered": buffered.count,
        "replayed": buffered.intersection(held).count,
        "lost": acknowledged.difference(held).difference(refused).count,
        "duplicates": max(totals, default=0),
        "unapplied_at_end": refused.count,
    }


# --- series ---


def series(run: Run, points: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    """Version and gradients computed, each half second; accuracy and loss where they were evaluated."""
    computed = [record.t for record in run.heard.ledger if record.fact is Fact.COMPUTED]
    rows = [
        (e.t, e.version, e.accuracy, e.loss) for e in run.heard.evaluations if run.t_start <= e.t <= run.t_end
    ]  # fmt: skip
    last = run.t_start - SERIES_INTERVAL_S
    for t, version in points:
        if t >= last + SERIES_INTERVAL_S:
            rows.append((t, version, None, None))
            last = t
    return [
        {
            "t_s": run.seconds(t),
            "version": version,
            "accuracy": accuracy,
            "loss": loss,
            "gradients": bisect_right(computed, t),
        }
        for t, version, accuracy, loss in sorted(rows, key=lambda row: row[0])
    ]


# --- cost ---


def cost(run: Run, gradients: Mapping[str, int]) -> dict[str, Any]:
    """Machines are rented for the whole run; idle: workers computed nothing; recomputed: work done twice, or lost."""
    hourly, ledger = run.spec.cost.hourly, run.heard.ledger
    hours = (run.t_end - run.t_start) / 3600.0
    servers = run.spec.servers.shards * run.spec.servers.replicas
    computed: dict[int, list[float]] = {}
    seen, repeated = Applied(), 0
    for record in ledger:
        if record.fact is Fact.COMPUTED:
            computed.setdefault(record.slot, []).append(record.t)
            identity = Identity(record.slot, record.first, record.last)
            repeated += seen.held(identity)
            _absorb(seen, identity)
    begin = min((times[0] for times in computed.values()), default=0.0)
    end = max((times[-1] for times in computed.values()), default=0.0)
    idle_s = sum(_idle_s(times, begin, end) for times in computed.values())
    usual = [_usual_step_s(times) for times in computed.values()]
    step_s = median(usual) if usual else 0.0
    return {
        "total": round(hours * (servers * hourly.server + run.spec.workers.replicas * hourly.worker), 6),
        "idle": round(idle_s / 3600.0 * hourly.worker, 6),
        "recomputed": round((repeated + gradients["lost"]) * step_s / 3600.0 * hourly.worker, 6),
        "currency": run.spec.cost.currency,
    }


def _usual_step_s(times: Sequence[float]) -> float:
    gaps = [b - a for a, b in pairwise(times)]
    return median(gaps) if gaps else 0.0


def _idle_s(times: Sequence[float], begin: float, end: float) -> float:
    usual = _usual_step_s(times)
    edges = [begin, *times, end]
    gaps = [b - a for a, b in pairwise(edges)]
    return sum(gap - usual for gap in gaps if usual > 0.0 and gap > IDLE_FACTOR * usual)


# --- the whole ---


def final(run: Run) -> dict[str, Any]:
    """The last evaluation, if it is of the final version; and the digest over all shards."""
    version = min((int(t.get("version", 0)) for t in run.tables.values()), default=0)
    last = run.heard.evaluations[-1] if run.heard.evaluations else None
    digests = [str(run.tables[shard].get("digest", "")) for shard in sorted(run.tables)]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {
        "accuracy": last.accuracy if last is not None else None,
        "loss": last.loss if last is not None else None,
        "version": version,
        "digest": digest if digests else "",
    }


def build_report(run: Run) -> dict[str, Any]:
    """report.json as a dictionary (the command line's reference describes every field)."""
    heard, spec = run.heard, run.spec
    points = versions(heard.samples, spec.servers.shards)
    gradients = count_gradients(run)
    return {
        "schema": SCHEMA,
        "job": run.job,
        "strategy": spec.recovery.strategy,
        "consistency": spec.training.consistency,
        "workers": spec.workers.replicas,
        "servers": spec.servers.shards * spec.servers.replicas,
        "seed": spec.training.seed,
        "duration_s": round(run.t_end - run.t_start, 3),
        "series": series(run, points),
        "resources": [
            {"t_s": run.seconds(r.t), "process": r.process, "cpu_s": round(r.cpu_s, 3), "rss_bytes": r.rss_bytes}
            for r in heard.resources
        ],
        "final": final(run),
        "gradients": gradients,
        "failures": failures(run, points),
        "bytes": {
            "pushed": sum(pushed for pushed, _ in heard.traffic.values()),
            "pulled": sum(pulled for _, pulled in heard.traffic.values()),
            "buffer_peak": max((s.buffer_bytes for s in heard.samples), default=0),
        },
        "cost": cost(run, gradients),
    }


def _how(signal: str) -> str:
    """A failure that nobody ordered may have been the process's own exit."""
    return f"by SIG{signal}" if signal.isupper() else "(by itself)"


def in_words(report: Mapping[str, Any]) -> list[str]:
    """Three lines for a newcomer: what was killed, how long until the next update, what was lost."""
    failed, g = report["failures"], report["gradients"]
    if failed:
        what = "; ".join(f"{f['target']} {_how(f['signal'])} at {f['t_killed_s']:.1f} s" for f in failed)
    else:
        what = "nothing"
    waits = []
    for f in failed:
        if f["t_first_update_s"] is None:
            waits.append(f"{f['target']}: none came before the end")
        else:
            waits.append(f"{f['t_first_update_s'] - f['t_killed_s']:.2f} s")
    lost = "nothing" if g["lost"] == 0 else f"{g['lost']:,} gradients that workers had seen acknowledged"
    applied = (
        f"{g['acknowledged']:,} of {g['computed']:,} gradients were acknowledged, {g['applied']:,} are in the model"
    )
    twice = "none twice" if g["duplicates"] == 0 else f"{g['duplicates']:,} were applied twice"
    spare = f", {g['unapplied_at_end']:,} were left unapplied at the end" if g["unapplied_at_end"] else ""
    return [
        f"Killed:            {what}",
        f"Until next update: {', '.join(waits) if waits else 'training was never interrupted'}",
        f"Lost:              {lost} ({applied}, {twice}{spare})",
    ]
