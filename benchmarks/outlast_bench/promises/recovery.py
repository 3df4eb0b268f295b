"""`outlast bench recovery`: how long from the loss of a head to the next update.

KILL: the head of a whole chain is killed again and again, each time a while after its replacement has joined; counted
is the time from the signal to the first update that a server applied under a later view (the server's own clock, which
all processes of a machine share). STOP: the same with SIGSTOP, a pause that closes no connection. Local runs end a
paused head as soon as it is out of the view, so whether such a head acknowledges anything when it goes on is asked of
one that nobody ends (fence.py). TERM: the head hands over before it leaves; counted is the longest time without an
update around the handover (servers' acknowledgements in the workers' ledgers; what Redis took counts for nothing),
beside what was usual before.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from outlast.api.strategy import CHAINED
from outlast.process.ledger import Fact
from outlast_bench.promises.common import (
    BenchError,
    Outcome,
    Pacer,
    Progress,
    Ran,
    Settings,
    make_job,
    ms,
    rounded,
    run_job,
    table,
)
from outlast_bench.promises.fence import Fenced, old_head_goes_on

NAME = "recovery"
HELP = "from the loss of a head to the next update: SIGKILL, SIGSTOP, SIGTERM"
MEDIAN_S, WORST_S = 0.150, 1.0
STOP_SLACK_S = 0.5
HANDOVER_S = 0.100
MUST = (
    "SIGKILL of the head to the first update under the new view: median <= 150 ms, worst <= 1 s (Chain and Hybrid); "
    "SIGSTOP: <= timeoutSeconds + 0.5 s, and the old head, continued, acknowledges nothing; SIGTERM: no pause > 100 ms"
)
RUNS = 20  # kills a strategy; a quarter of it for STOP and TERM

SIGNALS = ("KILL", "STOP", "TERM")
KILLS_A_RUN = 5
REPLICAS = 3
BEFORE_S, AFTER_S = 0.2, 2.0  # a handover's surroundings
QUIET_S = 0.4  # what is usual is taken this far away from the start and from the first signal


@dataclass
class Losses:
    """What one kind of loss of one strategy came to. Times in seconds; None: never seen."""

    waits: list[float | None] = field(default_factory=list)  # signal to first update under a later view
    detected: list[float] = field(default_factory=list)
    promoted: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)  # longest time without an update around the signal
    usual: list[float] = field(default_factory=list)  # the same, before the first signal of a run
    lost: int = 0
    duplicates: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def seen(self) -> list[float]:
        return [wait for wait in self.waits if wait is not None]

    @property
    def worst(self) -> float | None:
        return None if None in self.waits or not self.waits else max(self.seen)

    def figures(self) -> dict[str, Any]:
        return {
            "losses": len(self.waits),
            "never_recovered": self.waits.count(None),
            "median_s": rounded(median(self.seen)) if self.seen else None,
            "worst_s": rounded(self.worst),
            "detected_median_s": rounded(median(self.detected)) if self.detected else None,
            "promoted_median_s": rounded(median(self.promoted)) if self.promoted else None,
            "pause_worst_s": rounded(max(self.pauses, default=None)),
            "usual_pause_worst_s": rounded(max(self.usual, default=None)),
            "lost": self.lost,
            "duplicates": self.duplicates,
            "all_s": [rounded(wait) for wait in self.waits],
        }


def measure(settings: Settings) -> Outcome:
    kills = settings.count(RUNS)
    few = max(1, kills // 4)
    pairs = [(sign, strategy) for sign in SIGNALS for strategy in CHAINED]
    if settings.short:  # one strategy a signal
        chain, hybrid = CHAINED
        pairs = list(zip(SIGNALS, (hybrid, chain, chain), strict=True))
    plans = [(strategy, sign, kills if sign == "KILL" else few) for sign, strategy in pairs]
    figures: dict[str, Any] = {}
    problems: list[str] = []
    timeout_s = 2.0
    shown = table(
        "the head of a chain of three is lost", "signal, strategy", "losses", "detected", "promoted",
        "first update: median", "worst", "pause: worst", "usual before", "lost, twice",
    )  # fmt: skip
    total = sum(-(-count // KILLS_A_RUN) for _, _, count in plans) + few
    with Progress(settings.console, total, "recovery") as progress:
        for strategy, sign, count in plans:
            losses = _collect(settings, progress, strategy, sign, count)
            figures.setdefault(sign, {})[strategy] = losses.figures()
            problems += losses.problems + _judge(strategy, sign, losses, timeout_s)
            _show(shown, f"{sign}, {strategy}", losses)
        fenced = [_fence(settings, progress, n, problems) for n in range(few)]
    figures["STOP"]["timeout_s"] = timeout_s
    figures["STOP"]["old_head"] = [f.figures() for f in fenced if f is not None]
    settings.console.print(shown)
    _show_fenced(settings, [f for f in fenced if f is not None])
    return Outcome(figures, problems)


# --- runs ---


def _collect(settings: Settings, progress: Progress, strategy: str, sign: str, count: int) -> Losses:
    """Run jobs until `count` losses were measured, with a few runs to spare."""
    losses = Losses()
    chooser = random.Random(f"{settings.seed}/{strategy}/{sign}")
    spare = 3
    while len(losses.waits) < count:
        batch = min(KILLS_A_RUN, count - len(losses.waits))
        label = f"{strategy}, {batch} x SIG{sign} of the head"
        progress.step(label)
        seconds = 4.0 + batch * (7.0 if sign == "STOP" else 4.5)
        pacer = Pacer(REPLICAS, seconds - (5.0 if sign == "STOP" else 3.0), chooser)
        job = make_job(
            "bench-recovery",
            strategy,
            args={"parameters": 1_000_000, "computeMs": 5.0},
            seed=settings.seed + len(losses.waits),
            seconds=seconds,
            recovery={"checkpoint": {"everyUpdates": 1000}},
        )
        try:
            ran = run_job(
                job, pacer.kills(batch, f"head@0s:{sign}"), progress, label=label, deadline_s=seconds + 90.0,
                on_scene=pacer.see, all_kills=False,
            )  # fmt: skip
        except BenchError as error:
            losses.problems.append(str(error))
            break
        found = _take(ran, losses)
        if found < batch:
            spare -= 1
            if spare < 0:
                losses.problems.append(f"{ran.keep()}: the chain was whole again for only {found} of {batch} kills")
                break
        if ran.gradients["lost"] or ran.gradients["duplicates"]:
            losses.problems.append(f"{ran.keep()}: {ran.gradients}")
        elif None in losses.waits[-found:] and found:
            losses.problems.append(f"{ran.keep()}: a loss was followed by no update")
        else:
            ran.discard()
    return losses


def _take(ran: Ran, losses: Losses) -> int:
    """Add a run's losses. Returns how many there were."""
    failures = ran.drilled()
    start = ran.result.run.t_start
    killed = [start + f["t_killed_s"] for f in failures]
    updates = update_times(ran)
    for failure, t in zip(failures, killed, strict=True):
        first = failure["t_first_update_s"]
        losses.waits.append(None if first is None else first - failure["t_killed_s"])
        if failure["t_detected_s"] is not None:
            losses.detected.append(failure["t_detected_s"] - failure["t_killed_s"])
        if failure["t_promoted_s"] is not None:
            losses.promoted.append(failure["t_promoted_s"] - failure["t_killed_s"])
        losses.pauses.append(longest_gap(updates, t - BEFORE_S, t + AFTER_S))
    usual = usual_gap(updates, killed[0]) if killed else None
    losses.usual += [usual] if usual is not None else []
    losses.lost += ran.gradients["lost"]
    losses.duplicates += ran.gradients["duplicates"]
    return len(failures)


def update_times(ran: Ran) -> list[float]:
    """When workers heard of an update, and when each view saw its first one. What went to Redis counts for nothing."""
    heard = ran.result.run.heard
    return sorted([*(r.t for r in heard.ledger if r.fact is Fact.ACKNOWLEDGED), *heard.first_updates.values()])


def longest_gap(times: Sequence[float], begin: float, end: float) -> float:
    """The longest time between two of the sorted `times` that overlaps [begin, end]."""
    i, j = max(0, bisect_left(times, begin) - 1), bisect_right(times, end) + 1
    return max((b - a for a, b in pairwise(times[i:j])), default=end - begin)


def usual_gap(times: Sequence[float], first_signal: float) -> float | None:
    """The longest gap of the stretch before anything was lost; None when it is too short to say."""
    if not times or first_signal - QUIET_S < times[0] + 2 * QUIET_S:
        return None
    return longest_gap(times, times[0] + QUIET_S, first_signal - QUIET_S)


# --- judgement ---


def _judge(strategy: str, sign: str, losses: Losses, timeout_s: float) -> list[str]:
    who = f"{strategy}, SIG{sign}"
    if not losses.waits or None in losses.waits:
        return [f"{who}: {len(losses.seen)} of {len(losses.waits)} losses were followed by an update"]
    worst, middle = max(losses.seen), median(losses.seen)
    found = []
    if sign == "KILL" and (middle > MEDIAN_S or worst > WORST_S):
        found.append(f"{who}: median {ms(middle)}, worst {ms(worst)}; at most {ms(MEDIAN_S)} and {ms(WORST_S)}")
    if sign == "STOP" and worst > timeout_s + STOP_SLACK_S:
        found.append(f"{who}: worst {ms(worst)}, at most {ms(timeout_s + STOP_SLACK_S)}")
    if sign == "TERM" and max(losses.pauses) > HANDOVER_S:
        found.append(f"{who}: a pause of {ms(max(losses.pauses))}, at most {ms(HANDOVER_S)}")
    if losses.lost or losses.duplicates:
        found.append(f"{who}: {losses.lost} gradients lost, {losses.duplicates} applied twice")
    return found


def _show(shown: Any, name: str, losses: Losses) -> None:
    f = losses.figures()
    shown.add_row(
        name, str(f["losses"]), ms(f["detected_median_s"]), ms(f["promoted_median_s"]), ms(f["median_s"]),
        ms(f["worst_s"]), ms(f["pause_worst_s"]), ms(f["usual_pause_worst_s"]), f"{losses.lost}, {losses.duplicates}",
    )  # fmt: skip


# --- the old head, continued ---


def _fence(settings: Settings, progress: Progress, n: int, problems: list[str]) -> Fenced | None:
    progress.step(f"a paused head continues after its chain has another ({n + 1})")
    try:
        fenced = old_head_goes_on(settings.seed + n)
    except BenchError as error:
        problems.append(str(error))
        return None
    if fenced.acknowledged:
        problems.append(f"the old head acknowledged {fenced.acknowledged} of {fenced.sent} pushes after SIGCONT")
    return fenced


def _show_fenced(settings: Settings, fenced: list[Fenced]) -> None:
    shown = table(
        "a head paused by SIGSTOP, continued once its successor acts", "sent to it", "acknowledged by it", "refused",
        "closed", "applied by the new chain meanwhile",
    )  # fmt: skip
    for f in fenced:
        shown.add_row(str(f.sent), str(f.acknowledged), str(f.refused), str(f.closed), str(f.new_chain_applied))
    settings.console.print(shown)
