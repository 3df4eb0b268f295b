"""The shared files of a run: the status is written by compare-and-swap, readers see whole files only."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from outlast.api.config import ServerAddress
from outlast_operator.local.directory import LONGEST_ROOT, RunConfig, RunDirectory
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    for folder in ("sockets", "errors", "slots"):
        (tmp_path / folder).mkdir()
    return run


def test_nothing_recorded_is_an_empty_status_without_a_version(directory: RunDirectory) -> None:
    assert directory.read_status() == JobStatus()


def test_a_write_is_read_back_with_its_version(directory: RunDirectory) -> None:
    version = directory.write_status(JobStatus(state="Running", incarnations={1: 2}), None)
    assert directory.read_status() == JobStatus(state="Running", incarnations={1: 2}, resource_version=version)


def test_a_stale_writer_gets_a_conflict_and_changes_nothing(directory: RunDirectory) -> None:
    first = directory.write_status(JobStatus(state="A"), None)
    directory.write_status(JobStatus(state="B"), first)
    for stale in (None, first, "99"):
        with pytest.raises(Conflict, match="observe again"):
            directory.write_status(JobStatus(state="C"), stale)
    assert directory.read_status().state == "B"


def test_of_many_writers_one_wins_each_version(directory: RunDirectory) -> None:
    wins: list[str] = []

    def write(name: str) -> None:
        for _ in range(20):
            status = directory.read_status()
            try:
                wins.append(directory.write_status(replace(status, state=name), status.resource_version))
            except Conflict:
                continue

    threads = [threading.Thread(target=write, args=(f"writer-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == len(set(wins)) == int(directory.read_status().resource_version or 0)


def test_a_known_status_is_read_again_only_when_it_was_replaced(directory: RunDirectory) -> None:
    known = JobStatus(state="known")
    assert directory.read_status_if_newer(known) is known
    version = directory.write_status(JobStatus(state="A"), None)
    fresh = directory.read_status_if_newer(known)
    assert fresh.state == "A"
    assert directory.read_status_if_newer(fresh) is fresh
    directory.write_status(JobStatus(state="B"), version)
    assert directory.read_status_if_newer(fresh).state == "B"


def test_config_holds_slots_and_events_survive_the_trip(directory: RunDirectory) -> None:
    servers = ((ServerAddress("server-0", "unix:/a"),), (ServerAddress("server-1", "tcp:h:1"),))
    config = RunConfig("job", "uid", "token", {"a": 1}, servers, "/jobs", 1.5, templates={"worker": {"env": {}}})
    directory.write_config(config)
    assert directory.config() == config
    assert directory.holds() == {}
    directory.write_holds({"server-0": 12.5})
    assert directory.holds() == {"server-0": 12.5}
    assert directory.events() == []
    directory.add_event({"reason": "A"})
    directory.add_event({"reason": "B"})
    assert [event["reason"] for event in directory.events()] == ["A", "B"]


def test_an_error_is_the_words_of_the_process_that_gave_up(directory: RunDirectory) -> None:
    assert directory.error("worker-0") == ""
    (directory.root / "errors" / "worker-0.json").write_text('{"error": "no such task", "kind": "task"}')
    assert directory.error("worker-0") == "no such task"
    directory.forget_error("worker-0")
    directory.forget_error("worker-0")
    assert directory.error("worker-0") == ""


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long for unix sockets"):
        RunDirectory.create(tmp_path / ("x" * LONGEST_ROOT))
