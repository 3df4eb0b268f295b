"""report.json of a run, reckoned from what was observed and from nothing else. Pure.

Where the figures come from: *computed, acknowledged, buffered* from the workers' ledgers, as unique (slot, step);
*applied, duplicates* from the tables of the servers that survived; *lost* is what workers saw acknowledged, less what
those tables hold, less what was refused or left unread because the job had reached its goal (*unapplied_at_end*).
Times of a failure: the kill by the one who killed, the first update by the server that applied it, detection and
promotion from the recorded status. A time that never came, or was never observed, is null.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from outlast.api.spec import JobSpec
from outlast.applied import Applied
from outlast.ledger import Fact, LedgerRecord
from outlast.protocol import Identity
from outlast_operator.monitor import ACTING, Heard, ServerSample
from outlast_operator.state import Failover, JobStatus

SCHEMA = 1
SERIES_INTERVAL_S = 0.5
RATE_WINDOW_S = 10.0  # before and after a failure
IDLE_FACTOR = 3.0  # a gap of more than three usual steps between two gradients of a slot is idleness


@dataclass(frozen=True)
class Loss:
    """One failure as the runner saw it: a kill of the drill, or a process that ended by itself."""

    names: tuple[str, ...]
    signal: str
    t_killed: float
    t_detected: float | None = None  # known here only for the operator, which nobody else watches
    t_promoted: float | None = None


@dataclass(frozen=True)
class Run:
    """Everything a report is made of. Times are monotonic seconds; `t_start` is the report's zero."""

    job: str
    spec: JobSpec
    t_start: float
    t_end: float
    heard: Heard
    status: JobStatus = field(default_factory=JobStatus)
    losses: Sequence[Loss] = ()
    tables: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # shard -> ServerControl.table() at the end

    def seconds(self, t: float | None) -> float | None:
        return None if t is None else round(t - self.t_start, 4)


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
    held = surviving(run.tables, run.spec.servers.shards)
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


def versions(samples: Iterable[ServerSample], shards: int) -> list[tuple[float, int]]:
    """(t, version that all shards had reached), at every sample of a server that acted as head."""
    newest: dict[int, int] = {}
    points: list[tuple[float, int]] = []
    for sample in sorted(samples, key=lambda s: s.t):
        if sample.role in ACTING and sample.serving:
            newest[sample.shard] = sample.version
            if len(newest) == shards:
                points.append((sample.t, min(newest.values())))
    return points


def series(run: Run, points: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    """Version and gradients computed, each half second; accuracy and loss where they were evaluated."""
    computed = [record.t for record in run.heard.ledger if record.fact is Fact.COMPUTED]
    rows = [
        (e.t, e.version, e.accuracy, e.loss) for e in run.heard.evaluations if run.t_start <= e.t <= run.t_end
    ]  # fmt: skip
    last = run.t_start - SERIES_INTERVAL_S
    for t, version in points:
        if t >= last + SERIES_INTERVAL_S:
            rows.append((t, version, None, None))  # type: ignore[arg-type]
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


# --- failures ---


def failures(run: Run, points: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    ordered = sorted(run.losses, key=lambda loss: loss.t_killed)
    ledger_lines = sorted(run.status.failovers, key=lambda f: f.t_detected)
    described: list[dict[str, Any]] = []
    for i, loss in enumerate(ordered):
        line = _line_for(loss, ledger_lines)
        if line is not None:
            ledger_lines.remove(line)
        until = ordered[i + 1].t_killed if i + 1 < len(ordered) else run.t_end
        since = described_end(run, ordered[:i], points)
        described.append(_describe(run, loss, line, points, since, until))
    return described


def described_end(run: Run, earlier: Sequence[Loss], points: Sequence[tuple[float, int]]) -> float:
    """Where the window before a failure may begin: after the first update, and after the last failure."""
    begin = min(run.heard.first_updates.values(), default=run.t_start)
    return max([begin, *(_next_update(points, loss.t_killed) or loss.t_killed for loss in earlier)])


def _line_for(loss: Loss, lines: Sequence[Failover]) -> Failover | None:
    """The status's line for this loss; of several processes killed at once, the one that took longest."""
    mine = [f for f in lines if f.target in loss.names and f.t_detected >= loss.t_killed - 0.1]
    first = {name: next((f for f in mine if f.target == name), None) for name in loss.names}
    found = [f for f in first.values() if f is not None]
    return max(found, key=lambda f: (f.epoch or 0, f.t_first_update or float("inf")), default=None)


def _next_update(points: Sequence[tuple[float, int]], t: float) -> float | None:
    """When the version was first seen to grow after `t` (a rollback falls first, then grows)."""
    i = bisect_right(points, t, key=lambda p: p[0])
    previous = points[i - 1][1] if i > 0 else 0
    for at, version in points[i:]:
        if version > previous:
            return at
        previous = version
    return None


def _describe(
    run: Run,
    loss: Loss,
    line: Failover | None,
    points: Sequence[tuple[float, int]],
    since: float,
    until: float,
) -> dict[str, Any]:
    first = _next_update(points, loss.t_killed)
    epoch = line.epoch if line is not None else None
    if line is not None and line.kind == "server" and epoch is not None:
        exact = run.heard.first_updates.get((line.shard, epoch), line.t_first_update)
        first = exact if exact is not None and exact >= loss.t_killed else first
    computed = [record.t for record in run.heard.ledger if record.fact is Fact.COMPUTED]
    back = first if first is not None else until
    return {
        "target": ", ".join(loss.names),
        "signal": loss.signal,
        "t_killed_s": run.seconds(loss.t_killed),
        "t_detected_s": run.seconds(line.t_detected if line is not None else loss.t_detected),
        "t_promoted_s": run.seconds(line.t_promoted if line is not None else loss.t_promoted),
        "t_first_update_s": run.seconds(first),
        "epoch": epoch if epoch is not None else _epoch_at(run.heard.samples, back),
        "gradients_per_s": {
            "before": _rate(computed, max(since, loss.t_killed - RATE_WINDOW_S), loss.t_killed),
            "during": _rate(computed, loss.t_killed, back),
            "after": None if first is None else _rate(computed, first, min(first + RATE_WINDOW_S, until)),
        },
        "t_backlog_applied_s": run.seconds(_backlog_applied(run.heard.samples, loss.t_killed, until)),
    }


def _rate(times: Sequence[float], begin: float, end: float) -> float | None:
    """Gradients computed a second in [begin, end); null for no time at all."""
    if end - begin <= 0.0:
        return None
    return round((bisect_left(times, end) - bisect_left(times, begin)) / (end - begin), 3)


def _epoch_at(samples: Sequence[ServerSample], t: float) -> int | None:
    return max((s.epoch for s in samples if s.t <= t and s.role in ACTING), default=None)


def _backlog_applied(samples: Iterable[ServerSample], t_killed: float, until: float) -> float | None:
    """When the log that grew in the outage was first seen empty again; null if it was never seen to grow."""
    backlog: dict[int, int] = {}
    grown = False
    for sample in sorted(samples, key=lambda s: s.t):
        if not t_killed < sample.t <= until or sample.role not in ACTING:
            continue
        backlog[sample.shard] = sample.backlog
        if sample.backlog > 0:
            grown = True
        elif grown and not any(backlog.values()):
            return sample.t
    return None


# --- cost ---


def cost(run: Run, gradients: Mapping[str, int]) -> dict[str, Any]:
    """Machines are rented for the whole run. Idle: workers that computed nothing. Recomputed: work done twice or lost."""
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
    begin, end = (min(t[0] for t in computed.values()), max(t[-1] for t in computed.values())) if computed else (0, 0)
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
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return median(gaps) if gaps else 0.0


def _idle_s(times: Sequence[float], begin: float, end: float) -> float:
    usual = _usual_step_s(times)
    edges = [begin, *times, end]
    gaps = [b - a for a, b in zip(edges, edges[1:], strict=False)]
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


def in_words(report: Mapping[str, Any], killed: Sequence[str] = ()) -> list[str]:
    """Three lines for a newcomer: what was killed, how long until the next update, what was lost."""
    failed, g = report["failures"], report["gradients"]
    if failed:
        what = "; ".join(f"{f['target']} by SIG{f['signal']} at {f['t_killed_s']:.1f} s" for f in failed)
    else:
        what = "nothing"
    waits = []
    for f in failed:
        if f["t_first_update_s"] is None:
            waits.append(f"{f['target']}: none came before the end")
        else:
            waits.append(f"{f['t_first_update_s'] - f['t_killed_s']:.2f} s")
    lost = "nothing" if g["lost"] == 0 else f"{g['lost']:,} gradients that workers had seen acknowledged"
    applied = f"{g['acknowledged']:,} of {g['computed']:,} gradients were acknowledged, {g['applied']:,} are in the model"
    twice = "none twice" if g["duplicates"] == 0 else f"{g['duplicates']:,} were applied twice"
    spare = f", {g['unapplied_at_end']:,} came after the goal was reached" if g["unapplied_at_end"] else ""
    return [
        f"Killed:            {what}",
        f"Until next update: {', '.join(waits) if waits else 'training was never interrupted'}",
        f"Lost:              {lost} ({applied}, {twice}{spare})",
    ]
