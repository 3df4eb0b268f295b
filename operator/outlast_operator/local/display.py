"""What the user sees while a run goes on: a live view in a terminal, plain lines in a pipe, nothing with --json.

A display is handed a `Scene` some times a second and lines to `say`; it asks nobody anything itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outlast.api.server_status import Evaluation
from outlast.api.spec import JobSpec
from outlast_operator.local.monitor import Moment
from outlast_operator.planner.observed import Probe
from outlast_operator.planner.status import JobStatus

PLAIN_INTERVAL_S = 2.0
ROLE_STYLE = {
    "head": "bold green", "single": "bold green", "middle": "cyan", "tail": "blue", "joining": "yellow",
    "stopped": "red", "gone": "bold red", "empty": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class Link:
    """One server as shown: its name and what it is now."""

    name: str
    role: str


@dataclass(frozen=True)
class Scene:
    """Everything shown at one moment. `outages`: shard -> seconds since it had a head that serves."""

    job: str
    spec: JobSpec
    t_s: float
    moment: Moment
    status: JobStatus
    outages: Mapping[int, float]
    redis: bool | None = None  # None: the run needs none
    workers: int = 0
    operator: bool = True

    @property
    def percent(self) -> float | None:
        """How far the job is, by whichever of its goals is nearest; None if no goal can be measured yet."""
        stop, moment = self.spec.training.stop_after, self.moment
        shares = [self.status.progress.percent / 100.0] if self.status.progress.percent is not None else []
        if stop.updates:
            shares.append(moment.version / stop.updates)
        if stop.seconds and moment.t_first_update is not None:
            shares.append((time.monotonic() - moment.t_first_update) / stop.seconds)
        if stop.accuracy and moment.evaluation is not None and moment.evaluation.accuracy is not None:
            shares.append(moment.evaluation.accuracy / stop.accuracy)
        return min(100.0, 100.0 * max(shares)) if shares else None


def chain(shard: int, status: JobStatus, probes: Mapping[str, Probe]) -> list[Link]:
    """The recorded view of a shard, head first, each member with the role it has itself reported."""
    view = status.views.get(shard)
    if view is None:
        return []
    links = [Link(m.name, _role(m.name, m.boot, probes)) for m in view.members]
    return links + [Link(m.name, "joining") for m in view.joining]


def _role(name: str, boot: str, probes: Mapping[str, Probe]) -> str:
    probe = probes.get(name)
    return probe.role if probe is not None and probe.boot == boot else "gone"


def outage_text(shard: int, seconds: float, spec: JobSpec, redis: bool | None) -> str:
    """What a shard without a head means for the workers, in one line."""
    computes = spec.traits.buffered and redis
    what = "workers keep computing, their gradients go to Redis" if computes else "workers wait"
    return f"shard {shard} has no head for {seconds:.1f} s: {what}"


class Display(Protocol):
    def update(self, scene: Scene) -> None: ...
    def say(self, text: str, style: str = "") -> None: ...
    def close(self) -> None: ...


class Silent:
    """--json and --quiet: nothing until the end."""

    def update(self, scene: Scene) -> None:
        pass

    def say(self, text: str, style: str = "") -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """One line now and then, for pipes and logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def update(self, scene: Scene) -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL_S:
            return
        self._last = now
        self._print(scene.t_s, summary(scene))

    def say(self, text: str, style: str = "") -> None:
        self._print(None, text)

    def close(self) -> None:
        pass

    def _print(self, t_s: float | None, text: str) -> None:
        sys.stdout.write(f"{f'{t_s:7.1f} s  ' if t_s is not None else ''}{text}\n")
        sys.stdout.flush()


def summary(scene: Scene) -> str:
    """The scene in one line."""
    moment = scene.moment
    parts = [scene.status.state]
    if scene.percent is not None:
        parts.append(f"{scene.percent:.0f} %")
    parts.append(f"version {moment.version:,}")
    if moment.evaluation is not None:
        parts.append(_found(moment.evaluation, ".3f")[0][0])
    parts.append(f"{moment.gradients_per_s:.1f} gradients/s")
    for shard in sorted(scene.status.views):
        links = chain(shard, scene.status, moment.probes)
        parts.append(f"[{shard}: {' > '.join(f'{link.name} {link.role}' for link in links)}]")
    parts += [outage_text(shard, s, scene.spec, scene.redis) for shard, s in scene.outages.items()]
    return ", ".join(parts)


class LiveView:
    """The live view of a terminal; lines said scroll above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._live.start()

    def update(self, scene: Scene) -> None:
        self._live.update(render(scene))

    def say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def close(self) -> None:
        self._live.stop()


def render(scene: Scene) -> RenderableType:
    """The live view as something rich can draw."""
    moment, status = scene.moment, scene.status
    title = Text.assemble((scene.job, "bold"), "  ", (status.state, "bold cyan"), f"  {scene.t_s:.0f} s")
    title.append(f"  {scene.spec.recovery.strategy}, {scene.spec.training.consistency}", "dim")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column()
    if scene.percent is not None:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=100.0, completed=scene.percent, width=40), f"{scene.percent:.0f} %", _eta(scene))
        grid.add_row("progress", bar)
    grid.add_row("model", _model(moment))
    for shard in sorted(status.views):
        grid.add_row(f"shard {shard}" if len(status.views) > 1 else "servers", _chain_text(shard, scene))
    grid.add_row(
        "workers", f"{scene.workers} of {scene.spec.workers.replicas}, {moment.gradients_per_s:.1f} gradients/s"
    )
    if scene.redis is not None:
        backlog = sum(p.backlog for p in moment.probes.values() if p.is_head)
        grid.add_row("redis", Text.assemble(_dot(scene.redis), f"{backlog:,} gradients not applied yet"))
    if not scene.operator:
        grid.add_row("operator", Text("down: training continues, failovers wait", "bold red"))
    if status.failovers:
        grid.add_row("failovers", _failovers(status))
    outages = [outage_text(shard, seconds, scene.spec, scene.redis) for shard, seconds in scene.outages.items()]
    return Group(Text(), title, grid, *[Text(f" {text} ", "bold white on red") for text in outages])


def _dot(up: bool) -> tuple[str, str]:
    return ("● ", "green") if up else ("✗ down  ", "bold red")


def _eta(scene: Scene) -> str:
    eta_s = scene.status.progress.eta_s
    return "" if eta_s is None else f"{eta_s:.0f} s left"


def _model(moment: Moment) -> Text:
    text = Text(f"version {moment.version:,}")
    if moment.evaluation is not None:
        for part, style in _found(moment.evaluation, ".1%"):
            text.append(f"   {part}", style)
    return text


def _found(evaluation: Evaluation, form: str) -> list[tuple[str, str]]:
    """What an evaluation found, with its style; the accuracy first, in that form, if the task knows one."""
    accuracy = [] if evaluation.accuracy is None else [(f"accuracy {evaluation.accuracy:{form}}", "bold")]
    if evaluation.loss is None:
        return [*accuracy, ("loss not finite: training has diverged", "bold red")]
    return [*accuracy, (f"loss {evaluation.loss:.4f}", "dim")]


def _chain_text(shard: int, scene: Scene) -> Text:
    text = Text()
    view = scene.status.views[shard]
    for i, link in enumerate(chain(shard, scene.status, scene.moment.probes)):
        if i:
            text.append(" ─▶ " if link.role != "joining" else " ┄▶ ", "dim")
        style = ROLE_STYLE.get(link.role, "")
        text.append(f"{'✗' if link.role == 'gone' else '●'} {link.name} ", style)
        text.append(link.role, style + " italic")
    text.append(f"   epoch {view.epoch}", "dim")
    if view.history > 0:
        text.append(f", {view.history} rollback{'s' if view.history != 1 else ''}", "dim")
    return text


def _failovers(status: JobStatus) -> Text:
    last = status.failovers[-1]
    text = Text(f"{len(status.failovers)}; last: {last.target} {last.cause.lower()}")
    if last.t_first_update is not None:
        text.append(f", next update {last.t_first_update - last.t_detected:.2f} s after detection", "green")
    elif last.t_promoted is not None:
        text.append(", promoted, waiting for the first update", "yellow")
    else:
        text.append(", deciding", "red")
    return text


def choose_display(quiet: bool) -> Display:
    if quiet:
        return Silent()
    return LiveView() if sys.stdout.isatty() else Plain()
