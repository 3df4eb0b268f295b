"""`outlast bench busy`: workers compute through an outage of all servers.

The FashionMNIST CNN on two workers; 15 s after the first update every server is killed and held back for 15 s. The
rate of gradients before and during comes from the workers' ledgers. The backlog is what was buffered by the time of
the first update after the outage. Hybrid has applied it when the log in Redis is seen empty again; in Stateless all
gradients go through the log, in its order, so there it is applied when the version has reached their number. Memory is
the highest resident size seen, process by process.

Durability is EverySecond, not the default Always: a disk that syncs some hundred times a second cannot carry more
gradients than that, whatever the strategy. What Always costs here is shown by a short run without an outage.

Before each run with a log as much memory as it may come to (in Redis, and in the page cache of its file) is touched
once: fresh memory of a virtual machine can be slower than a log that grows by 200 MB/s (memory.py; both speeds are
shown).
"""

from __future__ import annotations

from typing import Any

from outlast.api.strategy import BUFFERED, STRATEGIES, TABLE, strategies
from outlast.process.ledger import Fact
from outlast_bench.promises.common import (
    FASHION_MNIST,
    SYNTHETIC,
    BenchError,
    Outcome,
    Progress,
    Ran,
    Settings,
    make_job,
    rounded,
    run_job,
    table,
)
from outlast_bench.promises.memory import touch
from outlast_operator.reporting.data import steps_of

NAME = "busy"
HELP = "workers compute through an outage of all servers"
RATIO = 0.95
DRAIN_S = 15.0
MUST = (
    "Stateless and Hybrid: gradients/s during a 15 s outage of all servers >= 0.95 of before, and the backlog is "
    "applied within 15 s of recovery while training continues (the others are reported)"
)
RUNS = 1  # a strategy

ORDER = (*BUFFERED, *(strategy for strategy in STRATEGIES if strategy not in BUFFERED))
MAX_BYTES = "8Gi"
TOUCH_BYTES = 14 << 30
FULL, SHORT = (15.0, 15.0, 22.0), (2.0, 2.0, 4.0)  # seconds before the kill, of the outage, after it


def measure(settings: Settings) -> Outcome:
    runs = settings.count(RUNS)
    chosen = ORDER[:3] if settings.short else ORDER
    at_s, down_s, _ = SHORT if settings.short else FULL
    figures: dict[str, Any] = {"outage_s": down_s, "durability": "EverySecond"}
    problems: list[str] = []
    memory: dict[str, dict[str, float]] = {}
    shown = table(
        f"all servers killed at {at_s:g} s and held back for {down_s:g} s", "strategy", "gradients/s before",
        "during", "ratio", "after", "backlog", "applied after", "buffer peak", "lost", "twice",
    )  # fmt: skip
    with Progress(settings.console, runs * len(chosen) + 1, "busy") as progress:
        touched = []
        for strategy in chosen:
            if strategy in BUFFERED and not settings.short:
                touched.append(touch(TOUCH_BYTES, progress.detail))
            cases = [c for n in range(runs) if (c := _outage(settings, progress, strategy, n, problems, memory))]
            figures[strategy] = cases
            for case in cases:
                _show(shown, strategy, case)
        figures["always"] = _always(settings, progress, problems)
    figures["memory"] = touched
    settings.console.print(shown)
    _show_memory(settings, memory)
    _explain(settings, figures)
    return Outcome({**figures, "peak_mb": memory}, problems)


def _job(settings: Settings, strategy: str, seconds: float, durability: str, seed: int) -> Any:
    task: dict[str, Any] = {"task": FASHION_MNIST}
    if settings.short:
        task = {"task": SYNTHETIC, "args": {"parameters": 50_000, "computeMs": 10.0}}
    return make_job(
        "bench-busy",
        strategy,
        **task,
        seed=seed,
        seconds=seconds,
        recovery={
            "buffer": {"dtype": "bfloat16", "maxBytes": MAX_BYTES, "durability": durability},
        },
    )


def _outage(
    settings: Settings,
    progress: Progress,
    strategy: str,
    n: int,
    problems: list[str],
    memory: dict[str, dict[str, float]],
) -> dict[str, Any] | None:
    at_s, down_s, after_s = SHORT if settings.short else FULL
    label = f"{strategy}, servers@{at_s:g}s+{down_s:g}s"
    progress.step(label)
    seconds = at_s + down_s + after_s
    job = _job(settings, strategy, seconds, "EverySecond", settings.seed + n)
    try:
        ran = run_job(job, [f"servers@{at_s:g}s+{down_s:g}s"], progress, label=label, deadline_s=seconds + 120.0)
    except BenchError as error:
        problems.append(str(error))
        return None
    case = _case(ran)
    peaks = memory.setdefault(strategy, {})
    for process, bytes_ in _peaks(ran).items():
        peaks[process] = max(peaks.get(process, 0.0), round(bytes_ / 1e6, 1))
    found = _judge(strategy, case) if strategy in BUFFERED and not settings.short else []
    found += [f"{strategy}: {case['duplicates']} gradients applied twice"] if case["duplicates"] else []
    if strategy in strategies(lambda row: row.through_buffer) and case["lost"]:
        found.append(f"{strategy}: {case['lost']} acknowledged gradients lost")
    if found:
        problems += [*found, f"the run of {ran.keep()}"]
    else:
        ran.discard()
    return case


def _case(ran: Ran) -> dict[str, Any]:
    """One outage's figures. Its end is the first update under a later view."""
    failure = ran.drilled()[0]
    rates, back = failure["gradients_per_s"], failure["t_first_update_s"]
    before, during = rates["before"], rates["during"]
    buffered = steps_of(ran.result.run.heard.ledger, Fact.BUFFERED).count
    backlog, applied_at = _backlog(ran, failure)
    lines = [f for f in ran.result.run.status.failovers if f.kind == "server"]
    return {
        "before_per_s": before,
        "during_per_s": during,
        "ratio": rounded(during / before) if before and during is not None else None,
        "after_per_s": rates["after"],
        "no_update_s": None if back is None else rounded(back - failure["t_killed_s"]),
        "drain_s": None if back is None or applied_at is None else rounded(applied_at - back),
        "backlog": backlog,
        "buffered": buffered,
        "buffer_peak_mb": round(ran.report["bytes"]["buffer_peak"] / 1e6, 1),
        "lost": ran.gradients["lost"],
        "duplicates": ran.gradients["duplicates"],
        "replayed": ran.gradients["replayed"],
        "restored": next((f.restore for f in lines if f.restore is not None), None),
    }


def _backlog(ran: Ran, failure: dict[str, Any]) -> tuple[int, float | None]:
    """(gradients that waited when the outage ended, when the last of them was seen applied: seconds of the run)."""
    run, back = ran.result.run, failure["t_first_update_s"]
    if back is None:
        return 0, None
    begin, end = run.t_start + failure["t_killed_s"], run.t_start + back
    ledger = [r for r in run.heard.ledger if r.t <= end]
    if not TABLE[ran.report["strategy"], ran.report["consistency"]].through_buffer:
        waited = steps_of((r for r in ledger if r.t >= begin), Fact.BUFFERED).count
        return waited, failure["t_backlog_applied_s"]
    total = steps_of(ledger, Fact.BUFFERED).count
    before = max((s.version for s in run.heard.samples if s.t <= begin), default=0)
    arrived = next((s.t for s in run.heard.samples if s.t >= end and s.version >= total), None)
    return max(0, total - before), run.seconds(arrived)


def _judge(strategy: str, case: dict[str, Any]) -> list[str]:
    found = []
    if case["ratio"] is None or case["ratio"] < RATIO:
        found.append(f"{strategy}: {case['during_per_s']} gradients/s during, {case['before_per_s']} before: too few")
    if case["drain_s"] is None or case["drain_s"] > DRAIN_S:
        found.append(f"{strategy}: the backlog of {case['backlog']} was not applied within {DRAIN_S:g} s")
    return found


def _peaks(ran: Ran) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for sample in ran.result.run.heard.resources:
        peaks[sample.process] = max(peaks.get(sample.process, 0), sample.rss_bytes)
    return peaks


def _always(settings: Settings, progress: Progress, problems: list[str]) -> dict[str, Any]:
    """What durability Always carries, without any outage."""
    label = "Stateless, durability Always, no outage"
    progress.step(label)
    seconds = 2.0 if settings.short else 8.0
    try:
        job = _job(settings, "Stateless", seconds, "Always", settings.seed)
        ran = run_job(job, [], progress, label=label, deadline_s=seconds + 120.0)
    except BenchError as error:
        problems.append(str(error))
        return {}
    times = [r.t for r in ran.result.run.heard.ledger if r.fact is Fact.BUFFERED]
    ran.discard()
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    return {"gradients_per_s": rounded((len(times) - 1) / span) if span > 0 else None, "seconds": seconds}


# --- what is shown ---


def _show(shown: Any, strategy: str, case: dict[str, Any]) -> None:
    def text(key: str, unit: str = "", digits: int = 1) -> str:
        return "-" if case[key] is None else f"{case[key]:.{digits}f}{unit}"

    shown.add_row(
        strategy, text("before_per_s"), text("during_per_s"), text("ratio", digits=3), text("after_per_s"),
        str(case["backlog"]), text("drain_s", " s"), text("buffer_peak_mb", " MB", 0), str(case["lost"]),
        str(case["duplicates"]),
    )  # fmt: skip


def _show_memory(settings: Settings, memory: dict[str, dict[str, float]]) -> None:
    names = sorted({name for peaks in memory.values() for name in peaks})
    shown = table("highest resident memory, MB", "process", *memory)
    for name in names:
        shown.add_row(name, *[f"{peaks[name]:.0f}" if name in peaks else "" for peaks in memory.values()])
    settings.console.print(shown)


def _explain(settings: Settings, figures: dict[str, Any]) -> None:
    [strategy] = strategies(lambda row: row.diverts)
    for case in figures[strategy]:
        settings.console.print(
            f"{strategy} lost every replica at once and fell back to {case['restored']}, which cost {case['lost']} "
            "acknowledged gradients; what had gone to Redis was applied.",
            highlight=False,
        )
    for touched in figures["memory"]:
        settings.console.print(
            f"Before a run {touched['touched_mb'] / 1e3:.1f} GB of memory were touched once, at "
            f"{touched['slowest_mb_per_s']:.0f} to {touched['fastest_mb_per_s']:.0f} MB/s.",
            highlight=False,
        )
    rate = figures["always"].get("gradients_per_s")
    settings.console.print(
        f"Durability EverySecond. With Always, {'-' if rate is None else f'{rate:.0f}'} gradients/s reach Redis here "
        "(no outage): its disk is synced before each acknowledgement.",
        highlight=False,
    )
