"""When a member writes its part of a checkpoint, and under which label. Pure: versions and times are arguments.

Rules (invariant label-is-version)
- By updates: after the decision that takes the version to or past a multiple of `everyUpdates`, and after no later one.
  All replicas of a shard apply the same entries, and most decisions have one: they hold the same state there. A head
  that drains the log decides on up to 32 entries at once, which its followers get one by one; so it may hold a later
  state under the label than they, and skip multiples closer than that. A rollback admits only members that hold the
  very same part. A member that comes later (a new tail, a joiner) waits for the next multiple.
- Several shards write under the multiple, which is the same number for all of them. One shard has no other to agree
  with, and labels its part with the version that it holds.
- By time: the state as it is, under its own version.
- A volume that does not keep up gets every second multiple, every fourth, …: of any two shards the slower one's labels
  are among the faster one's, so that sets still become complete.

Who writes checkpoints: where servers share a directory, the tail, which holds only what is acknowledged (the head where
replicas lag behind on purpose, `replicateEveryUpdates`); where each has one of its own, every member, so that no
checkpoint lies in one place only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from outlast.api.server_status import CheckpointRef
from outlast.api.spec import JobSpec
from outlast.api.view import View

_LONGEST_STRIDE = 64
_SNAPSHOT_EVERY = 100  # updates between two snapshots in Redis: what a rebuilt server must replay, at most
_MAY_WAIT = 4  # parts, where shards must write the same labels; one shard alone writes what its volume has time for


class CheckpointSchedule:
    """Follows one server's versions. `next_label` is asked once for every decision, whoever writes."""

    def __init__(self, every_updates: int | None, every_seconds: float | None, shards: int) -> None:
        self._every, self._every_s, self._shards = every_updates, every_seconds, shards
        self._version = 0
        self._stride = 1
        self._written_t: float | None = None

    def holds(self, version: int) -> None:
        """The server took over a state of this version: its earlier labels are not its own to write."""
        self._version = version

    def next_label(self, version: int, now: float) -> int | None:
        """The label under which the state that a decision has just led to is to be written; None: it is not."""
        before, self._version = self._version, version
        if self._every is not None:
            step = self._every * self._stride
            label = version // step * step
            if label > before // step * step:
                return version if self._shards == 1 else label
        if self._written_t is None:
            self._written_t = now
        return version if self._every_s is not None and now - self._written_t >= self._every_s else None

    def written(self, now: float) -> None:
        """A part is on its way to the volume."""
        self._written_t = now

    def skipped(self) -> None:
        """A part was due, and the volume still had too many to write."""
        self._stride = min(2 * self._stride, _LONGEST_STRIDE)

    def kept_up(self) -> None:
        """The volume has written all that it was given."""
        self._stride = max(self._stride // 2, 1)


@dataclass(frozen=True)
class Due:
    """What is to be written now."""

    label: int  # the set's name for it
    to_redis: bool
    to_disk: bool


class SaveSchedule:
    """When a server saves, and where to. `on_disk`: it has a directory for checkpoints; `own`: one of its own."""

    def __init__(self, spec: JobSpec, boot: str, on_disk: bool, own: bool) -> None:
        recovery, shards = spec.recovery, spec.servers.shards
        every = recovery.checkpoint.every_updates
        self._boot, self._on_disk, self._own = boot, on_disk, own
        self.stateless = spec.traits.through_buffer
        self._head_writes = recovery.chain.replicate_every_updates > 1
        self._schedule = CheckpointSchedule(every, recovery.checkpoint.every_seconds, shards)
        self._may_wait = 0 if shards == 1 else _MAY_WAIT
        self._snapshot_every = min(every or _SNAPSHOT_EVERY, _SNAPSHOT_EVERY)
        self._last_snapshot = 0

    def writes(self, view: View | None) -> bool:
        """Whether this server writes its shard's part."""
        if view is None:
            return False
        if self._own:
            return view.position(self._boot) is not None
        writer = view.head if self._head_writes else view.tail
        return writer is not None and writer.boot == self._boot

    def first(self, view: View | None) -> Due | None:
        """The initial weights are applied: saved before they are acknowledged, so a total loss finds something."""
        return Due(0, self.stateless, self._on_disk) if self.writes(view) else None

    def next(self, version: int, view: View | None, waiting: int | None, now: float) -> Due | None:
        """An entry has led to this version; `waiting`: saves that wait (None: none is under way)."""
        label = self._schedule.next_label(version, now)
        if not self.writes(view):
            return None
        to_disk = label is not None and self._on_disk
        if waiting is not None and waiting >= self._may_wait:
            if to_disk:
                self._schedule.skipped()
            return None
        to_redis = self.stateless and version - self._last_snapshot >= self._snapshot_every
        return Due(version if label is None else label, to_redis, to_disk) if to_disk or to_redis else None

    def asked(self, label: int, history: int, available: Iterable[CheckpointRef]) -> Due | None:
        """A save under this label is asked for; None: it is among the checkpoints that are available."""
        known = any(c.version == label and c.history == history for c in available)
        return None if known and not self.stateless else Due(label, self.stateless, self._on_disk)

    def begins(self, due: Due, version: int, now: float) -> None:
        """The state of this version is on its way."""
        if due.to_disk:
            self._schedule.written(now)
        if due.to_redis:
            self._last_snapshot = version

    def holds(self, version: int) -> None:
        """Another state was taken over."""
        self._schedule.holds(version)

    def holds_first(self) -> None:
        self._schedule.holds(0)
        self._last_snapshot = 0

    def snapshot_failed(self) -> None:
        """Due again: a full log is trimmed by nothing else."""
        self._last_snapshot = 0

    def kept_up(self) -> None:
        """Nothing waits any more."""
        self._schedule.kept_up()
