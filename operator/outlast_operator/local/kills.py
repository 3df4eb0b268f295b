"""The failure drill: what `--kill TARGET@WHEN[+DOWN][:SIGNAL]` means, and when each kill is due.

Pure: the runner asks `KillSchedule.due` with what it has observed, `resolve` for the names behind a target at that
moment, and does the killing itself.

    TARGET  head, tail (of shard 0; `head/1` of shard 1), server-N, servers (all of a shard; `servers/1`), worker-N,
            workers, redis, operator
    WHEN    15s (since the first update), update=500 (version reached), accuracy=0.5 (last evaluation reached) or
            after=15s (since the kill written before it was carried out)
    DOWN    how long the replacement is held back; a promotion in a chain is not a replacement
    SIGNAL  KILL (default), TERM (a planned loss), STOP (a hang; continued after DOWN, if given)
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FORM = "TARGET@WHEN[+DOWN][:SIGNAL], for example head@15s, servers@update=500+10s or worker-0@accuracy=0.5:STOP"
_TARGET_FORMS = "head, tail, server-N, servers, worker-N, workers, redis or operator"
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SHARDED = re.compile(r"(head|tail|servers)(?:/(\d+))?")
_NUMBERED = re.compile(r"(server|worker)-(\d+)")
_ALONE = ("workers", "redis", "operator")


class KillError(ValueError):
    """A `--kill` that cannot be understood, or names what the job does not have."""


@dataclass(frozen=True)
class Trigger:
    """Holds when the observed `kind` ("time" and "after" in seconds, "update" or "accuracy") has reached `value`."""

    kind: str
    value: float

    def holds(self, t_s: float | None, version: int, accuracy: float | None, since_kill_s: float | None = None) -> bool:
        """`t_s` counts from the first update, `since_kill_s` from the kill before; None before those."""
        reached = {"time": t_s, "update": float(version), "accuracy": accuracy, "after": since_kill_s}[self.kind]
        return reached is not None and reached >= self.value


@dataclass(frozen=True)
class Kill:
    """One order to kill. `shard` matters to head, tail and servers alone."""

    text: str
    target: str
    trigger: Trigger
    shard: int = 0
    down_s: float | None = None
    signal: signal.Signals = signal.SIGKILL

    @property
    def holds_replacement(self) -> bool:
        """A stopped process is continued after `down_s` instead."""
        return self.down_s is not None and self.signal != signal.SIGSTOP

    @property
    def signal_name(self) -> str:
        return self.signal.name.removeprefix("SIG")


@dataclass(frozen=True)
class Cast:
    """Who is there to be killed at this moment, by name."""

    chains: Mapping[int, Sequence[str]] = field(default_factory=dict)  # shard -> members of its view, head first
    servers: Mapping[int, Sequence[str]] = field(default_factory=dict)  # shard -> every running server
    workers: Sequence[str] = ()
    redis: bool = False
    operator: bool = False

    def names(self) -> set[str]:
        servers = {name for shard in self.servers.values() for name in shard}
        return servers | set(self.workers) | {n for n in ("redis", "operator") if getattr(self, n)}


def parse_kill(text: str) -> Kill:
    """Read one `--kill`. Raises `KillError` that says what is wrong and how it is written."""
    target, at, rest = text.partition("@")
    if not at or not rest:
        raise KillError(f"--kill {text}: there is no WHEN; write {FORM}")
    name, shard = _parse_target(text, target)
    rest, colon, signal_name = rest.partition(":")
    if colon and signal_name not in SIGNALS:
        raise KillError(f"--kill {text}: {signal_name!r} is not a signal to kill with; use {', '.join(SIGNALS)}")
    when, plus, down = rest.partition("+")
    return Kill(
        text=text,
        target=name,
        shard=shard,
        trigger=_parse_when(text, when),
        down_s=_parse_duration(text, down, "DOWN") if plus else None,
        signal=SIGNALS[signal_name or "KILL"],
    )


def _parse_target(text: str, target: str) -> tuple[str, int]:
    sharded = _SHARDED.fullmatch(target)
    if sharded:
        return sharded[1], int(sharded[2] or 0)
    if target in _ALONE:
        return target, 0
    numbered = _NUMBERED.fullmatch(target)
    if numbered:
        return f"{numbered[1]}-{int(numbered[2])}", 0
    raise KillError(f"--kill {text}: {target!r} is not a target; use {_TARGET_FORMS}")


def _parse_when(text: str, when: str) -> Trigger:
    kind, equals, value = when.partition("=")
    if not equals:
        return Trigger("time", _parse_duration(text, when, "WHEN"))
    if kind == "after":
        return Trigger("after", _parse_duration(text, value, "WHEN"))
    if kind == "update" and re.fullmatch(r"\d+", value) and int(value) > 0:
        return Trigger("update", int(value))
    if kind == "accuracy" and re.fullmatch(r"0?\.\d+|[01]", value) and float(value) > 0:
        return Trigger("accuracy", float(value))
    if kind in ("update", "accuracy"):
        expected = "a whole number above 0" if kind == "update" else "a fraction between 0 and 1"
        raise KillError(f"--kill {text}: {kind}={value} is not {expected}; write {FORM}")
    raise KillError(f"--kill {text}: {when!r} is not a WHEN; use a time (15s), update=N, accuracy=X or after=15s")


def _parse_duration(text: str, raw: str, part: str) -> float:
    match = _DURATION.fullmatch(raw)
    if match is None:
        others = ", update=N, accuracy=X or after=15s" if part == "WHEN" else ""
        raise KillError(f"--kill {text}: {raw!r} is not a {part}; use a time with its unit (500ms, 15s, 2m){others}")
    return float(match[1]) * _UNITS_S[match[2]]


def check_kill(kill: Kill, shards: int, replicas: int, workers: int, redis: bool) -> None:
    """Raise `KillError` when the job will never have what `kill` names."""
    if kill.shard >= shards:
        raise KillError(f"--kill {kill.text}: there is no shard {kill.shard}; the job has {_span('shard ', shards)}")
    role, _, number = kill.target.partition("-")
    count = {"server": shards * replicas, "worker": workers}.get(role)
    if count is not None and int(number) >= count:
        raise KillError(f"--kill {kill.text}: there is no {kill.target}; the job has {_span(f'{role}-', count)}")
    if kill.target == "redis" and not redis:
        raise KillError(
            f"--kill {kill.text}: this run starts no Redis; use strategy Stateless, or Hybrid without Sync, "
            "and no buffer.url"
        )


def check_order(kills: Sequence[Kill]) -> None:
    """Raise `KillError` when the first kill waits for one before it."""
    if kills and kills[0].trigger.kind == "after":
        raise KillError(
            f"--kill {kills[0].text}: no kill comes before it; write it after that kill, or use a time (15s)"
        )


def _span(prefix: str, count: int) -> str:
    return f"{prefix}0" if count == 1 else f"{prefix}0 to {prefix}{count - 1}"


def resolve(kill: Kill, cast: Cast) -> tuple[str, ...]:
    """Names of the processes that `kill` means now; empty when there is nobody (yet) to kill."""
    chain = cast.chains.get(kill.shard, ())
    alive = cast.names()
    if kill.target == "head":
        wanted = tuple(chain[:1])
    elif kill.target == "tail":
        wanted = tuple(chain[-1:])
    elif kill.target == "servers":
        wanted = tuple(cast.servers.get(kill.shard, ()))
    elif kill.target == "workers":
        wanted = tuple(cast.workers)
    else:
        wanted = (kill.target,)
    return tuple(name for name in wanted if name in alive)


class KillSchedule:
    """The kills still to come, in the order given."""

    def __init__(self, kills: Sequence[Kill]) -> None:
        self._pending = list(enumerate(kills))
        self._done_s: dict[int, float] = {}  # ticket -> when, on the clock of `due`

    def due(self, t_s: float | None, version: int, accuracy: float | None) -> list[tuple[int, Kill]]:
        """(ticket, kill) of those whose moment has come; one that finds nobody stays due until `done`."""
        return [
            (n, kill)
            for n, kill in self._pending
            if kill.trigger.holds(t_s, version, accuracy, self._since_kill_s(n - 1, t_s))
        ]

    def _since_kill_s(self, ticket: int, t_s: float | None) -> float | None:
        return t_s - self._done_s[ticket] if t_s is not None and ticket in self._done_s else None

    def done(self, ticket: int, t_s: float | None) -> None:
        """It was carried out at `t_s`."""
        self._pending = [(n, kill) for n, kill in self._pending if n != ticket]
        self._done_s[ticket] = t_s or 0.0

    @property
    def pending(self) -> list[Kill]:
        return [kill for _, kill in self._pending]
