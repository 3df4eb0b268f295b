"""From report.json to something to read: report.html, one file that needs nothing else, and report.png.

Rules. (1) Every sentence follows from a number in the report; a number that is missing is said to be missing, not
guessed. (2) The headline is the worst that happened: a run that failed before a recovery that did not end before
gradients that were lost before time that was lost. (3) Nothing from the report reaches the page unescaped. (4) matplotlib and jinja2 are
imported when a report is rendered.

`story` holds all words and is pure; templates/report.html.j2 sets them; report_figure.py draws.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from outlast_operator import report_figure
from outlast_operator.report_figure import Interruption, number

HTML_NAME = "report.html"
PNG_NAME = "report.png"
STAGES = (("t_killed_s", "killed"), ("t_detected_s", "detected"), ("t_promoted_s", "promoted"), ("t_first_update_s", "first update"))
LEDGER = (
    ("computed", "Computed", "by all workers"),
    ("acknowledged", "Acknowledged", "promised to be kept, by a server or by Redis"),
    ("applied", "Applied", "different gradients that the surviving weights hold"),
    ("buffered", "Buffered", "acknowledged by Redis"),
    ("replayed", "Replayed", "read back from Redis and applied"),
    ("duplicates", "Duplicates", "sent again, recognised, and not applied twice"),
    ("unapplied_at_end", "Left at the end", "came when the goal had been reached"),
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
    configuration: tuple[tuple[str, str], ...]
    spec: str


def render(report: dict[str, Any], outdir: Path) -> tuple[Path, Path]:
    """Write report.html and report.png into `outdir`, which is made if need be; returns their paths.

    `report` is report.json, whole or in parts: what is missing is left out. Raises `OSError` where it cannot write.
    """
    from jinja2 import Environment, StrictUndefined

    outdir.mkdir(parents=True, exist_ok=True)
    shown = interruptions(report)
    template = resources.files("outlast_operator").joinpath("templates", "report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        story=story(report), figure=report_figure.svg(report, shown), colours=report_figure.LIGHT
    )
    html, png = outdir / HTML_NAME, outdir / PNG_NAME
    html.write_text(page, encoding="utf-8")
    report_figure.write_png(report, shown, png)
    return html, png


def interruptions(report: dict[str, Any]) -> list[Interruption]:
    """What the figure marks: every failure that took place, shaded for as long as no update was applied."""
    found = []
    for failure in _failures(report):
        killed, first = number(failure["t_killed_s"]), number(failure.get("t_first_update_s"))
        if killed is not None:
            label = f"{_target(failure)} {SIGNALS.get(_signal(failure), 'stopped')}"
            found.append(Interruption(label, killed, first, _waits(failure, report)))
    return found


def story(report: dict[str, Any]) -> Story:
    """The words of the page."""
    failures = _failures(report)
    headline, tone = _headline(report, failures)
    spec = report.get("spec")
    return Story(
        title=str(report.get("job") or "run"),
        headline=headline,
        tone=tone,
        summary=_summary(report),
        cards=tuple(_cards(report, failures)),
        failures=tuple(_failure(f, report) for f in failures),
        ledger=tuple(_ledger(report)),
        verdict=_verdict(report),
        configuration=tuple(_configuration(report)),
        spec=json.dumps(spec, indent=2) if isinstance(spec, dict) else "",
    )


# --- the sentences ----------------------------------------------------------------------------------------------------


def _headline(report: dict[str, Any], failures: list[dict[str, Any]]) -> tuple[str, str]:
    lost = number((report.get("gradients") or {}).get("lost"))
    if error := report.get("error"):
        return f"The run failed: {error}", "bad"
    if not failures:
        if lost:
            return f"No failure, and yet {_count(lost, 'gradient')} lost", "bad"
        return "Trained without a failure", "good"
    what = f"the loss of {_the(failures[0])}" if len(failures) == 1 else f"{len(failures)} failures"
    waited = [f for f in failures if _waits(f, report)]
    unfinished = [f for f in waited if _gap(f) is None]
    if unfinished:
        of = what if len(failures) == 1 else f"{len(unfinished)} of {what}"
        return f"Training had not recovered from {of} when the run ended", "bad"
    gaps = [_duration(gap) for f in waited if (gap := _gap(f)) is not None]
    paused = f"{_list(gaps)} without an update" if gaps else "it did not have to stop"
    if lost is None:
        return f"Training outlasted {what}: {paused}", "good"
    if lost > 0:
        return f"Training went on after {what}: {paused}, {_count(lost, 'gradient')} lost", "warn"
    return f"Training outlasted {what}: {paused}, no gradient lost", "good"


def _summary(report: dict[str, Any]) -> str:
    final = report.get("final") or {}
    version, duration, accuracy = (
        number(final.get("version")), number(report.get("duration_s")), number(final.get("accuracy")),
    )  # fmt: skip
    parts = []
    if version is not None and duration is not None:
        parts.append(f"{_count(version, 'update')} in {_duration(duration)}")
    if accuracy is not None:
        parts.append(f"test accuracy {_percent(accuracy)}")
    workers, servers = number(report.get("workers")), number(report.get("servers"))
    who = [_count(n, noun) for n, noun in ((workers, "worker"), (servers, "server")) if n is not None]
    how = ", ".join(str(report[key]) for key in ("strategy", "consistency") if report.get(key))
    sentences = [", ".join(parts), ", ".join([s for s in (how, " and ".join(who)) if s])]
    return " ".join(f"{s}." for s in sentences if s)


def _cards(report: dict[str, Any], failures: list[dict[str, Any]]) -> list[Card]:
    final, gradients = report.get("final") or {}, report.get("gradients") or {}
    cards = []
    if (accuracy := number(final.get("accuracy"))) is not None:
        loss = number(final.get("loss"))
        cards.append(Card("Test accuracy", _percent(accuracy), "" if loss is None else f"loss {loss:.3f}"))
    version, duration = number(final.get("version")), number(report.get("duration_s"))
    if version is not None:
        cards.append(Card("Updates", f"{version:,.0f}", f"{version / duration:,.1f} a second" if duration else ""))
    if (lost := number(gradients.get("lost"))) is not None:
        acknowledged = number(gradients.get("acknowledged"))
        remark = "" if acknowledged is None else f"of {acknowledged:,.0f} acknowledged"
        cards.append(Card("Gradients lost", f"{lost:,.0f}", remark, "bad" if lost else "good"))
    waited = [f for f in failures if _waits(f, report)]
    gaps = [gap for f in waited if (gap := _gap(f)) is not None]
    if gaps:
        detected = [d for f in waited if (d := _delay(f, "t_detected_s")) is not None]
        remark = f"noticed within {_duration(max(detected))}" if detected else "from the kill to the next update"
        cards.append(Card("Longest gap", _duration(max(gaps)), remark))
    moved = report.get("bytes") or {}
    pushed, pulled, peak = (number(moved.get(key)) for key in ("pushed", "pulled", "buffer_peak"))
    if pushed is not None and pulled is not None:
        cards.append(Card("Data moved", _bytes(pushed + pulled), f"buffer at most {_bytes(peak)}" if peak else "pushed and pulled"))
    cost = report.get("cost") or {}
    if (total := number(cost.get("total"))) is not None:
        currency, idle = str(cost.get("currency") or ""), number(cost.get("idle"))
        remark = f"{_money(idle)} of it idle" if idle is not None else ""
        cards.append(Card(f"Cost ({currency})" if currency else "Cost", _money(total), remark))
    return cards


def _failure(failure: dict[str, Any], report: dict[str, Any]) -> Failure:
    killed, gap, waits = number(failure["t_killed_s"]), _gap(failure), _waits(failure, report)
    assert killed is not None
    verb = "were" if _target(failure).endswith("s") and not _target(failure)[-1].isdigit() else "was"
    title = f"{_the(failure).capitalize()} {verb} {SIGNALS.get(_signal(failure), 'stopped')} at {killed:.1f} s"
    if not waits:
        outcome, tone = "training did not stop for it", "good"
    elif gap is not None:
        outcome, tone = f"first update {_duration(gap)} later", "good"
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
    stages, before = [], start
    for (_, name), t in zip(STAGES, times, strict=True):
        if t is not None:
            step = max(0.0, t - before)
            since = f"+{_duration(step)}" if stages else ""
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
        remarks.append(f"The buffered gradients had been taken in {_duration(max(0.0, backlog - first))} after that update.")
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
            tone = ("bad" if count else "good") if key == "lost" else ""
            rows.append(LedgerRow(name, f"{count:,.0f}", 100.0 * count / largest, meaning, tone))
    return rows


def _verdict(report: dict[str, Any]) -> str:
    gradients = report.get("gradients") or {}
    lost, acknowledged = number(gradients.get("lost")), number(gradients.get("acknowledged"))
    if lost is None:
        return "This run did not count what was lost."
    if lost == 0:
        return "Nothing that was acknowledged has been lost."
    share = f", {_percent(lost / acknowledged, 2)} of what was acknowledged" if acknowledged else ""
    return f"{_count(lost, 'acknowledged gradient')} lost{share}."


def _configuration(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, str(report[key])) for key, name in CONFIGURATION if report.get(key) not in (None, "")]
    if (duration := number(report.get("duration_s"))) is not None:
        rows.append(("Duration", f"{duration:.1f} s"))
    if digest := (report.get("final") or {}).get("digest"):
        rows.append(("Digest of the final weights", str(digest)))
    return rows


# --- words and units --------------------------------------------------------------------------------------------------


def _failures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The failures that took place (a run may end before one that was planned), in order of time."""
    happened = [f for f in report.get("failures") or [] if number(f.get("t_killed_s")) is not None]
    return sorted(happened, key=lambda f: float(f["t_killed_s"]))


def _waits(failure: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether training has to stop for this failure, and whether it went on is therefore a question."""
    target = _target(failure)
    if target in ("operator", "evaluator"):
        return False
    if target == "redis":
        return report.get("strategy") == "Stateless"
    return not target.startswith("worker-") or report.get("consistency") == "Sync"


def _target(failure: dict[str, Any]) -> str:
    return str(failure.get("target") or "server")


def _the(failure: dict[str, Any]) -> str:
    """`head` -> the head, `servers` -> all servers, `server-1` -> server-1."""
    target = _target(failure)
    if target in ("servers", "workers"):
        return f"all {target}"
    return target if target[-1].isdigit() or target == "redis" else f"the {target}"


def _signal(failure: dict[str, Any]) -> str:
    return str(failure.get("signal") or "KILL").removeprefix("SIG")


def _delay(failure: dict[str, Any], field: str) -> float | None:
    """Seconds from the kill to `field`; None if it was not reached."""
    killed, t = number(failure.get("t_killed_s")), number(failure.get(field))
    return None if killed is None or t is None else max(0.0, t - killed)


def _gap(failure: dict[str, Any]) -> float | None:
    return _delay(failure, "t_first_update_s")


def _duration(seconds: float) -> str:
    """340 ms, 2.41 s, 38.2 s, 3 min 05 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _count(value: float, noun: str) -> str:
    return f"{value:,.0f} {noun}" if value == 1 else f"{value:,.0f} {noun}s"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.995 or value == 0 else f"{value:.4f}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
