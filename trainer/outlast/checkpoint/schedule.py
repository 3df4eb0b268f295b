"""When a member writes its part of a checkpoint, and under which label. Pure: versions and times are arguments.

Rules (invariant label-is-version)
- By updates: at the entry that takes the version to or past a multiple of `everyUpdates`, and at no later one. All
  replicas of a shard apply the same entries, so all of them hold the same state there. A member that comes later (a new
  tail, a joiner) waits for the next multiple: what it would write now is not what the label says.
- Several shards write under the multiple, which is the same number for all of them. One shard has no other to agree
  with, and labels its part with the version that it holds.
- By time: the state as it is, under its own version.
- A volume that does not keep up gets every second multiple, every fourth, …: of any two shards the slower one's labels
  are among the faster one's, so that sets still become complete.
"""

from __future__ import annotations

_LONGEST_STRIDE = 64


class CheckpointSchedule:
    """Follows one server's versions. `next_label` is asked once for every entry, whoever writes."""

    def __init__(self, every_updates: int | None, every_seconds: float | None, shards: int) -> None:
        self._every, self._every_s, self._shards = every_updates, every_seconds, shards
        self._version = 0
        self._stride = 1
        self._written_t: float | None = None

    def holds(self, version: int) -> None:
        """The server took over a state of this version: its earlier labels are not its own to write."""
        self._version = version

    def next_label(self, version: int, now: float) -> int | None:
        """The label under which the state that an entry has just led to is to be written; None: it is not."""
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
