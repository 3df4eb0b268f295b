"""Carries the kill schedule out: resolves targets at the moment of the kill, holds replacements back, continues STOPs.

The hold is written before the kill, so that an operator that hears of the death has already been told to wait.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from outlast_operator.local.directory import RunDirectory
from outlast_operator.local.forkserver_client import ForkServerClient, ProcessRecord
from outlast_operator.local.kills import Cast, Kill, KillSchedule, resolve
from outlast_operator.local.run import Loss


class Drill:
    """The kills of one run; `step` is called some times a second."""

    def __init__(self, kills: Sequence[Kill], directory: RunDirectory, client: ForkServerClient) -> None:
        self._schedule = KillSchedule(kills)
        self._directory = directory
        self._client = client
        self._losses: list[Loss] = []
        self._holds: dict[str, float] = {}
        self._stopped: list[tuple[float, str, int]] = []  # (continue at, name, pid)

    def step(self, t_s: float | None, version: int, accuracy: float | None, cast: Cast) -> list[str]:
        """Carry out the kills that are due. Returns a line for each kill."""
        lines = self._continue_stopped()
        for ticket, kill in self._schedule.due(t_s, version, accuracy):
            names = resolve(kill, cast)
            if names:
                self._schedule.done(ticket, t_s)
                lines.append(self._carry_out(kill, names))
        return lines

    def _carry_out(self, kill: Kill, names: tuple[str, ...]) -> str:
        pids = {r.name: r.pid for r in self._client.list() if r.running}
        t = time.monotonic()
        if kill.holds_replacement:
            assert kill.down_s is not None
            self._holds |= dict.fromkeys(names, t + kill.down_s)
            self._directory.write_holds(self._holds)
            t = time.monotonic()
        killed = tuple(name for name in names if self._client.signal(name, kill.signal, pids.get(name)))
        self._losses.append(Loss(killed, kill.signal_name, t))
        if kill.signal == signal.SIGSTOP and kill.down_s is not None:
            self._stopped += [(t + kill.down_s, name, pids[name]) for name in killed]
        down = f", replacement held back for {kill.down_s:g} s" if kill.holds_replacement else ""
        return f"--kill {kill.text}: SIG{kill.signal_name} to {', '.join(killed)}{down}"

    def _continue_stopped(self) -> list[str]:
        now = time.monotonic()
        due = [stopped for stopped in self._stopped if stopped[0] <= now]
        self._stopped = [stopped for stopped in self._stopped if stopped[0] > now]
        return [f"SIGCONT to {name}" for _, name, pid in due if self._client.signal(name, signal.SIGCONT, pid)]

    def operator_restarted(self) -> None:
        """Note when a killed operator was started again: nobody else can report it."""
        for i, loss in enumerate(self._losses):
            if loss.names == ("operator",) and loss.t_promoted is None:
                self._losses[i] = replace(loss, t_promoted=time.monotonic())

    def losses(self, records: Iterable[ProcessRecord]) -> list[Loss]:
        """What was killed; for the operator with the time at which its death was seen."""
        ends = sorted(r.t_exited for r in records if r.name == "operator" and r.t_exited is not None)
        return [
            replace(loss, t_detected=next((t for t in ends if t >= loss.t_killed), None))
            if loss.names == ("operator",)
            else loss
            for loss in self._losses
        ]

    @property
    def pending(self) -> list[Kill]:
        return self._schedule.pending
