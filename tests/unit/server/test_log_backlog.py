"""How many gradients the log's reader takes to be pending together: what `reducedRate.above` is compared with."""

from __future__ import annotations

from outlast.server.log_reader import Backlog


class Log:
    """Counts what is not applied, and how often it is asked."""

    def __init__(self, entries: int, last_offset: int) -> None:
        self.answer = (entries, last_offset)
        self.asked = 0

    def look(self) -> tuple[int, int]:
        self.asked += 1
        return self.answer


def test_a_short_read_is_all_there_is() -> None:
    log = Log(1000, 1000)
    assert Backlog().pending(first_offset=1, read=31, limit=32, look=log.look) == 31
    assert log.asked == 0


def test_all_of_a_backlog_counts_together_to_its_last_gradient() -> None:
    backlog, log = Backlog(), Log(70, 170)
    assert [backlog.pending(first, read, 32, log.look) for first, read in ((101, 32), (133, 32), (165, 6))] == [70] * 3
    assert log.asked == 1


def test_what_comes_after_a_backlog_counts_anew() -> None:
    backlog = Backlog()
    backlog.pending(101, 32, 32, Log(70, 170).look)
    assert backlog.pending(171, 1, 32, Log(500, 900).look) == 1
    assert backlog.pending(172, 32, 32, Log(500, 900).look) == 500


def test_a_count_that_misses_entries_just_appended_is_no_less_than_what_was_read() -> None:
    assert Backlog().pending(1, 32, 32, Log(30, 30).look) == 32
