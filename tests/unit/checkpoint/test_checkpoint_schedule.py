"""When a part is written, and under which label."""

from __future__ import annotations

import pytest

from outlast.checkpoint.schedule import CheckpointSchedule


def labels(schedule: CheckpointSchedule, versions: list[int], now: float = 0.0) -> list[int | None]:
    return [schedule.next_label(version, now) for version in versions]


def test_one_entry_has_a_label_the_next_ones_do_not() -> None:
    schedule = CheckpointSchedule(50, None, shards=2)
    assert labels(schedule, [49, 50, 51, 99, 101, 102]) == [None, 50, None, None, 100, None]


def test_one_shard_labels_a_part_with_what_it_holds() -> None:
    assert labels(CheckpointSchedule(50, None, shards=1), [49, 53, 54]) == [None, 53, None]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("version", [70, 99])
def test_who_takes_over_a_state_writes_no_part_of_the_multiple_before(shards: int, version: int) -> None:
    """A new tail that did would put another version into a set that is complete already."""
    schedule = CheckpointSchedule(50, None, shards)
    schedule.holds(version)
    assert labels(schedule, list(range(version + 1, 103))) == [
        100 if v == 100 else None for v in range(version + 1, 103)
    ]


def test_after_a_rollback_the_same_multiples_come_again() -> None:
    schedule = CheckpointSchedule(50, None, shards=2)
    labels(schedule, list(range(1, 140)))
    schedule.holds(50)
    assert labels(schedule, [51, 99, 100]) == [None, None, 100]


def test_by_time_a_part_is_labelled_with_its_version() -> None:
    schedule = CheckpointSchedule(100, 60.0, shards=1)
    assert schedule.next_label(150, 0.0) == 150, "a multiple was passed"
    schedule.written(0.0)
    assert schedule.next_label(157, 59.0) is None
    assert schedule.next_label(158, 60.0) == 158
    schedule.written(60.0)
    assert schedule.next_label(159, 61.0) is None


def test_a_volume_that_does_not_keep_up_gets_labels_that_a_faster_one_has_too() -> None:
    slow, fast = CheckpointSchedule(10, None, shards=2), CheckpointSchedule(10, None, shards=2)
    slow.skipped()
    slow.skipped()
    versions = list(range(1, 201))
    written = {label for label in labels(slow, versions) if label is not None}
    assert written == {40, 80, 120, 160, 200}
    assert written <= {label for label in labels(fast, versions) if label is not None}
    slow.kept_up()
    slow.kept_up()
    assert labels(slow, [209, 210]) == [None, 210]
