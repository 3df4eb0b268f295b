"""What a report says in words: the headline, the key figures, how each failure was outlasted, the ledger. Pure.

Rules. (1) Every sentence follows from a number in the report; a number that is missing is said to be missing, not
guessed. (2) The headline is the worst that happened: a run that failed, then a recovery that did not end, then
gradients that were lost or counted twice, then time that was lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from outlast.api.strategy import traits_of
from outlast_operator.reporting import curves as report_curves
from outlast_operator.reporting import words
from outlast_operator.reporting.curves import number
from outlast_operator.reporting.figure import Interruption

MAX_GAPS = 3  # named one by one in the headline
STAGES = (
    ("t_killed_s", "killed"),
    ("t_detected_s", "detected"),
    ("t_promoted_s", "promoted"),
    ("t_first_update_s", "first update"),
)
LEDGER = (
    ("computed", "Computed", "by all workers"),
    ("acknowledged", "Acknowledged", "promised to be kept, by a server or by Redis"),
    ("applied", "Applied", "different gradients that the surviving weights hold"),
    ("buffered", "Buffered", "acknowledged by Redis"),
    ("replayed", "Replayed", "read back from Redis and applied"),
    ("duplicates", "Duplicates", "applied more than once"),
    ("unapplied_at_end", "Left at the end", "computed, and not applied any more when the run ended"),
    ("lost", "Lost", "acknowledged, but not in the surviving weights"),
)
CONFIGURATION = (
    ("job", "Job"), ("strategy", "Strategy"), ("consistency", "Consistency"), ("workers", "Workers"),
    ("servers", "Servers"), ("seed", "Seed"),
)  # fmt: skip
SIGNALS = {"KILL": "killed", "TERM": "asked to leave", "STOP": "paused"}


@dataclass(frozen=True)
class Card:
    """One key figure: what it is, its value with unit, and a remark. `tone` is "good", "bad" or ""."""

    title: str
    value: str
    remark: str
    tone: str = ""


@dataclass(frozen=True)
class Stage:
    """One point of a failover. `share` is its part of the bar in percent, `since` its delay after the one before."""

    name: str
    at: str
    since: str
    share: float
    reached: bool


@dataclass(frozen=True)
class Failure:
    """A failure in words, with its timeline and remarks."""

    title: str
    outcome: str
    tone: str
    stages: tuple[Stage, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class LedgerRow:
    """A count of gradients; `share` of the largest count in percent, for its bar."""

    name: str
    count: str
    share: float
    meaning: str
    tone: str = ""


@dataclass(frozen=True)
class Story:
    """Everything the page says."""

    title: str
    headline: str
    tone: str
    summary: str
    cards: tuple[Card, ...]
    failures: tuple[Failure, ...]
    ledger: tuple[LedgerRow, ...]
    verdict: str
    verdict_tone: str
    configuration: tuple[tuple[str, str], ...]
    spec: str


def interruptions(report: dict[str, Any]) -> list[Interruption]:
    """What the figure marks: every failure that took place, shaded for as long as no update was applied."""
    found = []
    for failure in _failures(report):
        killed, first = number(failure["t_killed_s"]), number(failure.get("t_first_update_s"))
        if killed is not None:
            label = f"{_what(failure).removeprefix('the ')} {_verb(failure).partition(' ')[2]}"
            found.append(Interruption(label, killed, first, _waits(failure, report)))
    return found


def story(report: dict[str, Any]) -> Story:
    """The words of the page."""
    failures = _failures(report)
    headline, tone = _headline(report, failures)
    verdict, verdict_tone = _verdict(report)
    spec = report.get("spec")
    return Story(
        title=str(report.get("job") or "run"),
        headline=headline,
        tone=tone,
        summary=_summary(report),
        cards=tuple(_cards(report, failures)),
        failures=tuple(_failure(f, report) for f in failures),
        ledger=tuple(_ledger(report)),
        verdict=verdict,
        verdict_tone=verdict_tone,
        configuration=tuple(_configuration(report)),
        spec=json.dumps(spec, indent=2) if isinstance(spec, dict) else "",
    )


# --- the sentences ----------------------------------------------------------------------------------------------------


def _headline(report: dict[str, Any], failures: list[dict[str, Any]]) -> tuple[str, str]:
    """The first sentence a reader sees, and its tone."""
    gradients = report.get("gradients") or {}
    lost, twice = number(gradients.get("lost")), number(gradients.get("duplicates"))
    if error := report.get("error"):
        return f"The run failed: {error}", "bad"
    harm = [f"{words.count(lost, 'gradient')} lost"] if lost else []
    harm += [f"{words.count(twice, 'gradient')} applied twice"] if twice else []
    if not failures:
        return ("No failure, and yet " + words.listing(harm), "bad") if harm else ("Trained without a failure", "good")
    waited = [f for f in failures if _waits(f, report)]
    unfinished = [f for f in waited if _gap(f) is None]
    what = f"the loss of {_what(failures[0])}" if len(failures) == 1 else f"{len(failures)} failures"
    if unfinished:
        of = what if len(failures) == 1 else f"{len(unfinished)} of {what}"
        return f"Training had not recovered from {of} when the run ended", "bad"
    gaps = [words.duration(gap) for f in waited if (gap := _gap(f)) is not None]
    if len(gaps) > MAX_GAPS:
        gaps = [f"at most {words.duration(max(gap for f in waited if (gap := _gap(f)) is not None))}"]
    paused = f"{words.listing(gaps)} without an update" if gaps else "it did not have to stop"
    if harm:
        return f"Training continued after {what}: {', '.join([paused, *harm])}", "bad" if twice else "warn"
    kept = "" if lost is None else ", no gradient lost"
    return f"Training outlasted {what}: {paused}{kept}", "good"


def _summary(report: dict[str, Any]) -> str:
    final = report.get("final") or {}
    version, duration, accuracy = (
        number(final.get("version")), number(report.get("duration_s")), number(final.get("accuracy")),
    )  # fmt: skip
    parts = []
    if version is not None and duration is not None:
        parts.append(f"{words.count(version, 'update')} in {words.duration(duration)}")
    if accuracy is not None:
        parts.append(f"test accuracy {words.percent(accuracy)}")
    workers, servers = number(report.get("workers")), number(report.get("servers"))
    who = [words.count(n, noun) for n, noun in ((workers, "worker"), (servers, "server")) if n is not None]
    how = ", ".join(str(report[key]) for key in ("strategy", "consistency") if report.get(key))
    sentences = [", ".join(parts), ", ".join([s for s in (how, " and ".join(who)) if s])]
    return " ".join(f"{s}." for s in sentences if s)


def _cards(report: dict[str, Any], failures: list[dict[str, Any]]) -> list[Card]:
    final, gradients = report.get("final") or {}, report.get("gradients") or {}
    cards = []
    if (accuracy := number(final.get("accuracy"))) is not None:
        loss = number(final.get("loss"))
        cards.append(Card("Test accuracy", words.percent(accuracy), "" if loss is None else f"loss {loss:.3g}"))
    if (version := number(final.get("version"))) is not None:
        rate = _updates_per_s(report)
        cards.append(Card("Updates", f"{version:,.0f}", f"{rate:,.1f} a second" if rate else ""))
    if (lost := number(gradients.get("lost"))) is not None:
        acknowledged = number(gradients.get("acknowledged"))
        remark = "" if acknowledged is None else f"of {acknowledged:,.0f} acknowledged"
        cards.append(Card("Gradients lost", f"{lost:,.0f}", remark, "bad" if lost else "good"))
    waited = [f for f in failures if _waits(f, report)]
    gaps = [gap for f in waited if (gap := _gap(f)) is not None]
    if gaps:
        detected = [d for f in waited if (d := _delay(f, "t_detected_s")) is not None]
        remark = f"noticed within {words.duration(max(detected))}" if detected else "from the kill to the next update"
        cards.append(Card("Longest gap", words.duration(max(gaps)), remark))
    moved = report.get("bytes") or {}
    pushed, pulled, peak = (number(moved.get(key)) for key in ("pushed", "pulled", "buffer_peak"))
    if pushed is not None and pulled is not None:
        remark = f"buffer at most {words.size(peak)}" if peak else "pushed and pulled"
        cards.append(Card("Data moved", words.size(pushed + pulled), remark))
    cost = report.get("cost") or {}
    if (total := number(cost.get("total"))) is not None:
        currency, idle = str(cost.get("currency") or ""), number(cost.get("idle"))
        remark = f"{words.money(idle)} of it idle" if idle is not None else ""
        cards.append(Card(f"Cost ({currency})" if currency else "Cost", words.money(total), remark))
    return cards


def _updates_per_s(report: dict[str, Any]) -> float | None:
    """From the last sample before the first update to the first with the final version, outages included."""
    points = report_curves.versions(report)
    moving = [i for i in range(1, len(points)) if points[i][1] != points[i - 1][1]]
    if not moving:
        return None
    (begin, before), (end, after) = points[moving[0] - 1], points[moving[-1]]
    return max(0.0, after - before) / (end - begin) if end > begin else None


def _failure(failure: dict[str, Any], report: dict[str, Any]) -> Failure:
    killed, gap, waits = number(failure["t_killed_s"]), _gap(failure), _waits(failure, report)
    assert killed is not None
    title = f"{words.sentence(_what(failure))} {_verb(failure)} at {killed:.1f} s"
    if not waits:
        outcome, tone = "training did not stop for it", "good"
    elif gap is not None:
        outcome, tone = f"first update {words.duration(gap)} later", "good"
    else:
        outcome, tone = "no update before the run ended", "bad"
    end = number(report.get("duration_s")) if waits and gap is None else None
    return Failure(title, outcome, tone, tuple(_stages(failure, waits, end)), tuple(_remarks(failure)))


def _stages(failure: dict[str, Any], waits: bool, end: float | None) -> list[Stage]:
    """The points of the failover and the time between them. A null was not reached; `end`: the bar goes on to there."""
    times = [number(failure.get(field)) for field, _ in STAGES]
    start = times[0]
    assert start is not None
    whole = max([t for t in (*times, end) if t is not None]) - start
    stages: list[Stage] = []
    before = start
    for (_, name), t in zip(STAGES, times, strict=True):
        if t is not None:
            step = max(0.0, t - before)
            since = f"+{words.duration(step)}" if stages else ""
            stages.append(Stage(name, f"{t:.2f} s", since, 100.0 * step / whole if whole > 0 else 0.0, True))
            before = max(before, t)
        elif waits:
            stages.append(Stage(name, "not reached", "", 0.0, False))
    return stages


def _remarks(failure: dict[str, Any]) -> list[str]:
    rate = failure.get("gradients_per_s") or {}
    spoken = [
        f"{value:,.0f} {when}" if value >= 10 or value == 0 else f"{value:.1f} {when}"
        for when in ("before", "during", "after")
        if (value := number(rate.get(when))) is not None
    ]
    remarks = [f"Gradients per second: {', '.join(spoken)}."] if spoken else []
    first, backlog = number(failure.get("t_first_update_s")), number(failure.get("t_backlog_applied_s"))
    if backlog is not None and first is not None:
        after = words.duration(max(0.0, backlog - first))
        remarks.append(f"The buffered gradients had been applied {after} after that update.")
    if number(failure.get("epoch")):
        remarks.append(f"Epoch {int(failure['epoch'])}.")
    return remarks


def _ledger(report: dict[str, Any]) -> list[LedgerRow]:
    gradients = report.get("gradients") or {}
    counts = {key: number(gradients.get(key)) for key, _, _ in LEDGER}
    largest = max((c for c in counts.values() if c is not None), default=0.0) or 1.0
    rows = []
    for key, name, meaning in LEDGER:
        count = counts[key]
        if count is not None:
            tone = ("bad" if count else "good") if key in ("lost", "duplicates") else ""
            rows.append(LedgerRow(name, f"{count:,.0f}", 100.0 * count / largest, meaning, tone))
    return rows


def _verdict(report: dict[str, Any]) -> tuple[str, str]:
    """What the ledger comes to, and its tone."""
    gradients = report.get("gradients") or {}
    lost, acknowledged, twice = (number(gradients.get(key)) for key in ("lost", "acknowledged", "duplicates"))
    again = f" {words.sentence(words.count(twice, 'gradient'))} applied more than once." if twice else ""
    if lost is None:
        return "This run did not count lost gradients." + again, "bad" if again else "warn"
    if lost == 0:
        kept = "No acknowledged gradient was lost, and none was applied twice."
        return ("No acknowledged gradient was lost." + again, "bad") if again else (kept, "good")
    share = f", {words.percent(lost / acknowledged, 2)} of all acknowledged" if acknowledged else ""
    return f"{words.count(lost, 'acknowledged gradient')} lost{share}.{again}", "bad"


def _configuration(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, str(report[key])) for key, name in CONFIGURATION if report.get(key) not in (None, "")]
    if (duration := number(report.get("duration_s"))) is not None:
        rows.append(("Duration", f"{duration:.1f} s"))
    if digest := (report.get("final") or {}).get("digest"):
        rows.append(("Digest of the final weights", str(digest)))
    return rows


# --- failures ---------------------------------------------------------------------------------------------------------


def _failures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The failures that took place (a run may end before one that was planned), in order of time."""
    happened = [f for f in report.get("failures") or [] if number(f.get("t_killed_s")) is not None]
    return sorted(happened, key=lambda f: float(f["t_killed_s"]))


def _targets(failure: dict[str, Any]) -> list[str]:
    """The processes that were hit: `target` names one or, separated by commas, several."""
    return [name.strip() for name in str(failure.get("target") or "a server").split(",") if name.strip()]


def _what(failure: dict[str, Any]) -> str:
    """`server-1` -> server-1; `head` -> the head; `servers` -> all servers; `server-0, server-1` -> servers 0 and 1."""
    names = _targets(failure)
    roles = {name.rpartition("-")[0] for name in names}
    if len(names) > 1:
        if len(roles) > 1 or "" in roles:
            return words.listing(names)
        return f"{roles.pop()}s {words.listing([name.rpartition('-')[2] for name in names])}"
    if names[0] in ("servers", "workers"):
        return f"all {names[0]}"
    return f"the {names[0]}" if names[0] in ("head", "tail", "operator", "evaluator") else names[0]


def _verb(failure: dict[str, Any]) -> str:
    plural = len(_targets(failure)) > 1 or _targets(failure)[0] in ("servers", "workers")
    signal = str(failure.get("signal") or "KILL").removeprefix("SIG")
    return f"{'were' if plural else 'was'} {SIGNALS.get(signal, 'stopped')}"


def _waits(failure: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether training has to stop for this failure, and whether it went on is therefore a question."""
    return any(_stops(name, report) for name in _targets(failure))


def _stops(target: str, report: dict[str, Any]) -> bool:
    if target in ("operator", "evaluator"):
        return False
    traits = traits_of(report)
    if target == "redis":
        return traits is not None and traits.through_buffer
    return not target.startswith("worker-") or (traits is not None and traits.barrier)


def _delay(failure: dict[str, Any], field: str) -> float | None:
    """Seconds from the kill to `field`; None if it was not reached."""
    killed, t = number(failure.get("t_killed_s")), number(failure.get(field))
    return None if killed is None or t is None else max(0.0, t - killed)


def _gap(failure: dict[str, Any]) -> float | None:
    return _delay(failure, "t_first_update_s")
