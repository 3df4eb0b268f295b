"""The report's page and figure: they say what happened, whatever of it was recorded."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from outlast_operator.reporting import curves as report_curves
from outlast_operator.reporting import words
from outlast_operator.reporting.page import render
from outlast_operator.reporting.story import interruptions, story

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def failure(target: str = "server-0", killed: float = 10.0, **changes: Any) -> dict[str, Any]:
    """A head's death at `killed`: noticed 20 ms later, answered after 60 ms, the next update after 400 ms."""
    return {
        "target": target,
        "signal": "KILL",
        "t_killed_s": killed,
        "t_detected_s": killed + 0.02,
        "t_promoted_s": killed + 0.06,
        "t_first_update_s": killed + 0.4,
        "epoch": 2,
        "gradients_per_s": {"before": 120.0, "during": 0.0, "after": 118.0},
        "t_backlog_applied_s": None,
    } | changes


def report(*failures: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Half a minute of training in a chain of three, at 100 updates a second."""
    samples = [
        {
            "t_s": t / 2,
            "version": 50 * t,
            "accuracy": None if t % 4 else 0.1 + t / 100,
            "loss": None,
            "gradients": 50 * t,
        }
        for t in range(61)
    ]
    used = [
        {"t_s": t / 2, "process": name, "cpu_s": 0.2 * t, "rss_bytes": 200 << 20}
        for name in ("server-0", "server-1", "worker-0", "operator")
        for t in range(61)
    ]
    return {
        "schema": 1,
        "job": "my-job",
        "strategy": "Chain",
        "consistency": "Async",
        "workers": 2,
        "servers": 3,
        "seed": 7,
        "duration_s": 30.0,
        "series": samples,
        "resources": used,
        "final": {"accuracy": 0.8651, "loss": 0.38, "version": 3000, "digest": "abc123"},
        "gradients": {
            "computed": 3004,
            "acknowledged": 3000,
            "applied": 3000,
            "buffered": 0,
            "replayed": 0,
            "lost": 0,
            "duplicates": 0,
            "unapplied_at_end": 2,
        },
        "failures": list(failures),
        "bytes": {"pushed": 10**10, "pulled": 10**10, "buffer_peak": 0},
        "cost": {"total": 0.05, "idle": 0.001, "recomputed": 0.0, "currency": "USD"},
    } | changes


def counted(**changes: int) -> dict[str, int]:
    gradients: dict[str, int] = report()["gradients"]
    return gradients | changes


UNFINISHED = failure(killed=28.0, t_promoted_s=None, t_first_update_s=None)
WORKER = failure("worker-0", t_promoted_s=None, t_first_update_s=None)


@pytest.mark.parametrize(
    ("given", "headline", "tone"),
    [
        (report(), "Trained without a failure", "good"),
        (
            report(failure()),
            "Training outlasted the loss of server-0: 400 ms without an update, no gradient lost",
            "good",
        ),
        (
            report(failure(), failure("head", 20.0, t_first_update_s=21.5)),
            "Training outlasted 2 failures: 400 ms and 1.50 s without an update, no gradient lost",
            "good",
        ),
        (
            report(*(failure(killed=5.0 * i, t_first_update_s=5.0 * i + i) for i in range(1, 5))),
            "Training outlasted 4 failures: at most 4.00 s without an update, no gradient lost",
            "good",
        ),
        (
            report(failure("server-0, server-1, server-2")),
            "Training outlasted the loss of servers 0, 1 and 2: 400 ms without an update, no gradient lost",
            "good",
        ),
        (
            report(failure(), gradients=counted(lost=1)),
            "Training continued after the loss of server-0: 400 ms without an update, 1 gradient lost",
            "warn",
        ),
        (
            report(failure(), gradients=counted(duplicates=2)),
            "Training continued after the loss of server-0: 400 ms without an update, 2 gradients applied twice",
            "bad",
        ),
        (report(UNFINISHED), "Training had not recovered from the loss of server-0 when the run ended", "bad"),
        (
            report(failure(), UNFINISHED, gradients=counted(lost=9)),
            "Training had not recovered from 1 of 2 failures when the run ended",
            "bad",
        ),
        (report(WORKER), "Training outlasted the loss of worker-0: it did not have to stop, no gradient lost", "good"),
        (
            report(WORKER, consistency="Sync"),
            "Training had not recovered from the loss of worker-0 when the run ended",
            "bad",
        ),
        (
            report(failure("operator", t_first_update_s=None)),
            "Training outlasted the loss of the operator: it did not have to stop, no gradient lost",
            "good",
        ),
        (
            report(failure("redis", t_first_update_s=None), strategy="Stateless"),
            "Training had not recovered from the loss of redis when the run ended",
            "bad",
        ),
        (report(gradients=counted(lost=3)), "No failure, and yet 3 gradients lost", "bad"),
        (report(failure(), gradients={}), "Training outlasted the loss of server-0: 400 ms without an update", "good"),
        (report(failure(), error="out of memory"), "The run failed: out of memory", "bad"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_headline_is_the_worst_that_happened(given: dict[str, Any], headline: str, tone: str) -> None:
    told = story(given)
    assert (told.headline, told.tone) == (headline, tone)


def test_a_recovery_is_told_stage_by_stage() -> None:
    (told,) = story(report(failure(t_backlog_applied_s=12.4))).failures
    assert told.title == "Server-0 was killed at 10.0 s"
    assert told.outcome == "first update 400 ms later"
    assert [(s.name, s.since) for s in told.stages] == [
        ("killed", ""),
        ("detected", "+20 ms"),
        ("promoted", "+40 ms"),
        ("first update", "+340 ms"),
    ]
    assert sum(s.share for s in told.stages) == pytest.approx(100.0)
    assert told.remarks == (
        "Gradients per second: 120 before, 0 during, 118 after.",
        "The buffered gradients had been applied 2.00 s after that update.",
        "Epoch 2.",
    )


def test_an_unfinished_recovery_shows_how_far_it_came() -> None:
    (told,) = story(report(UNFINISHED)).failures
    assert (told.outcome, told.tone) == ("no update before the run ended", "bad")
    assert [s.at for s in told.stages] == ["28.00 s", "28.02 s", "not reached", "not reached"]
    assert sum(s.share for s in told.stages) == pytest.approx(1.0)  # 20 ms of the 2 s that were left


def test_several_processes_are_spoken_of_in_the_plural() -> None:
    (told,) = story(report(failure("server-0, server-1", signal="TERM"))).failures
    assert told.title == "Servers 0 and 1 were asked to leave at 10.0 s"
    (told,) = story(report(failure("server-0, worker-1", signal="STOP"))).failures
    assert told.title == "Server-0 and worker-1 were paused at 10.0 s"


def test_a_failure_that_was_planned_and_never_came_is_left_out() -> None:
    given = report(failure(t_killed_s=None, t_detected_s=None, t_promoted_s=None, t_first_update_s=None))
    assert story(given).headline == "Trained without a failure"
    assert interruptions(given) == []


def test_the_figure_shades_the_time_without_an_update() -> None:
    given = report(UNFINISHED, failure(), WORKER)
    shown = [(i.label, i.start_s, i.end_s, i.shaded) for i in interruptions(given)]
    assert shown == [
        ("server-0 killed", 10.0, 10.4, True),
        ("worker-0 killed", 10.0, None, False),
        ("server-0 killed", 28.0, None, True),
    ]


def test_the_ledger_says_what_became_of_the_gradients() -> None:
    told = story(report(failure(), gradients=counted(lost=30)))
    assert {row.name: row.count for row in told.ledger}["Acknowledged"] == "3,000"
    assert told.ledger[-1].name == "Lost"
    assert told.ledger[-1].tone == "bad"
    assert told.verdict == "30 acknowledged gradients lost, 1.00 % of all acknowledged."
    kept = story(report())
    assert kept.verdict == "No acknowledged gradient was lost, and none was applied twice."
    assert story(report(gradients={})).verdict == "This run did not count lost gradients."


class Page(HTMLParser):
    """What a browser would fetch, and whether every element that was opened is closed."""

    VOID = ("meta", "br", "hr", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        names = ("src", "href", "xlink:href")
        self.fetched += [value or "" for name, value in attrs if name in names and not (value or "").startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")  # a space that does not break


CASES = {
    "no-failure": report(),
    "one": report(failure()),
    "two": report(failure(), failure("head", 20.0)),
    "unfinished": report(failure(), UNFINISHED, WORKER),
    "no-evaluation": report(failure(), final={"accuracy": None, "loss": None, "version": 3000, "digest": ""})
    | {"series": [s | {"accuracy": None} for s in report()["series"]]},
    "empty-series": report(failure(), series=[], resources=[]),
    "one-sample": report(series=report()["series"][:1], resources=report()["resources"][:1]),
    "diverged": report(final={"accuracy": float("nan"), "loss": float("inf"), "version": 3000, "digest": "x"}),
    "crowded": report(*(failure(killed=10.0 + 0.3 * i) for i in range(9))),
    "nothing-known": {"schema": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_every_report_can_be_rendered(case: str, tmp_path: Path) -> None:
    given = CASES[case]
    before = copy.deepcopy(given)
    html, png = render(given, tmp_path / "new" / "folder")
    assert repr(given) == repr(before)
    assert png.read_bytes().startswith(PNG_SIGNATURE)
    assert png.stat().st_size > 20_000
    page = Page(html.read_text())
    assert page.open == []
    assert page.fetched == []
    assert "@import" not in html.read_text()
    assert "url(http" not in html.read_text()
    assert story(given).headline in page.text
    assert re.findall(r"\b(?:nan|None|inf)\b", page.text) == []


def test_the_page_has_the_figures_and_the_curves(tmp_path: Path) -> None:
    html, _ = render(CASES["two"] | {"spec": {"training": {"task": "my.task"}}}, tmp_path)
    page = Page(html.read_text())
    for expected in (
        "86.5 %", "3,000", "of 3,000 acknowledged", "400 ms", "20.0 GB", "Cost (USD)", "0.0500", "my-job",
        "Digest of the final weights", "abc123", "my.task", "Test accuracy (%)", "Gradients computed (per second)",
        "Version (updates the parameters hold)", "CPU in use (cores)", "Resident memory (MiB)", "server-0 killed",
        "head killed", "worker", "86.5 % final", "Time since the start of the run (s)",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_the_figure_follows_the_pages_theme(tmp_path: Path) -> None:
    html, _ = render(CASES["one"], tmp_path)
    text = html.read_text()
    figure = text[text.index("<svg") : text.index("</svg>")]
    for name in ("ink", "muted", "grid", "outage", "accuracy", "server", "worker", "operator"):
        assert f"var(--{name})" in figure
        assert f"--{name}:" in text
    assert "#0a0b" not in figure
    assert set(re.findall(r"#[0-9a-f]{6}", figure)) <= {"#000000"}
    assert "prefers-color-scheme: dark" in text


def test_what_a_report_says_is_not_taken_for_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> $x^$"
    given = report(failure(evil), job=evil, spec={"x": evil}, error=evil)
    html, _ = render(given, tmp_path)
    assert "<script" not in html.read_text()


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    first, second = (render(CASES["two"], tmp_path / name)[0].read_text() for name in ("a", "b"))
    assert first == second


def test_rates_leave_out_a_counter_that_began_anew() -> None:
    points = [(0.0, 0.0), (1.0, 10.0), (2.0, 4.0), (3.0, 24.0), (3.1, 25.0), (4.0, 34.0)]
    assert report_curves.rates(points) == [(0.0, 1.0, 10.0), (2.0, 3.0, 20.0), (3.0, 4.0, 10.0)]


def test_the_time_before_and_after_training_does_not_count_in_the_rate() -> None:
    versions = [(5.0, 0), (10.0, 0), (11.0, 90), (12.0, 200), (20.0, 200)]
    given = report(series=[{"t_s": t, "version": v, "accuracy": None} for t, v in versions])
    given["series"].append({"t_s": 11.5, "version": 50, "accuracy": 0.5})  # evaluated: older than its time
    assert {card.title: card.remark for card in story(given).cards}["Updates"] == "100.0 a second"


def test_many_processes_of_a_role_become_their_mean(tmp_path: Path) -> None:
    used = [
        {"t_s": float(t), "process": f"worker-{i}", "cpu_s": 0.5 * t, "rss_bytes": 1 << 20}
        for i in range(12)
        for t in range(30)
    ]
    html, _ = render(report(resources=used), tmp_path)
    assert "workers (mean of 12)" in html.read_text()


def test_a_number_is_not_parted_from_its_unit() -> None:
    text = "2 failures: 420 ms and 15.6 s, 86.5 % of 3 servers"
    assert words.unbroken(text).split(" ") == [
        "2",
        "failures:",
        "420\u00a0ms",
        "and",
        "15.6\u00a0s,",
        "86.5\u00a0%",
        "of",
        "3",
        "servers",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0204, "20 ms"), (0.9996, "1.00 s"), (9.994, "9.99 s"), (15.62, "15.6 s"), (185.0, "3 min 05 s")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_nothing_heavy_is_imported_before_a_report_is_rendered() -> None:
    code = "import sys, json, outlast_operator.reporting.page; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}))
    assert not {"matplotlib", "jinja2", "torch", "numpy"} & set(loaded)
