"""Each bench once, as small as it gets: it must run, print one line of JSON, and find correct what is correct.

No test looks at a time: two busy cores say nothing about speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outlast_bench.promises.witness import count, read_commands, remembering

ROOT = Path(__file__).parents[2]


slow = pytest.mark.slow


def bench(name: str, timeout_s: float = 280.0) -> dict[str, Any]:
    path = os.pathsep.join(str(ROOT / source) for source in ("trainer", "operator", "benchmarks"))
    done = subprocess.run(
        [sys.executable, "-m", "outlast_operator.cli.main", "bench", name, "--short", "--runs", "1", "--json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.stdout.count("\n") == 1, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    line: dict[str, Any] = json.loads(done.stdout)
    assert set(line) == {"name", "figures", "must", "holds"}
    assert line["name"] == name
    assert done.returncode == (0 if line["holds"] else 1)
    return line


@slow
@pytest.mark.timeout(300)
def test_trace_finds_every_digest_identical() -> None:
    line = bench("trace")
    assert line["holds"], line["figures"]
    assert {len(set(runs.values())) for runs in line["figures"]["sync"].values()} == {1}
    assert all(case["identical"] and case["snapshots"] > 1 for case in line["figures"]["stateless"].values())


@slow
@pytest.mark.timeout(300)
def test_lost_finds_nothing_lost_and_nothing_twice() -> None:
    line = bench("lost")
    assert line["holds"], line["figures"]
    for strategy in ("Chain", "Stateless", "Hybrid"):
        found = line["figures"][strategy]
        assert (found["kills"], found["lost"], found["duplicates"]) == (1, 0, 0)
    assert line["figures"]["Checkpoint"]["lost"] <= line["figures"]["Checkpoint"]["since_checkpoint"]


@slow
@pytest.mark.timeout(300)
def test_busy_buffers_through_the_outage_and_applies_it() -> None:
    figures = bench("busy")["figures"]
    for strategy in ("Stateless", "Hybrid", "Checkpoint"):
        assert len(figures[strategy]) == 1, figures
        assert figures[strategy][0]["duplicates"] == 0
    for strategy in ("Stateless", "Hybrid"):
        case = figures[strategy][0]
        assert case["buffered"] > 0
        assert case["drain_s"] is not None, "the backlog was never seen to be applied"
    assert figures["Stateless"][0]["lost"] == 0
    assert figures["Checkpoint"][0]["during_per_s"] < figures["Stateless"][0]["during_per_s"]


@slow
@pytest.mark.timeout(300)
def test_recovery_goes_on_after_every_signal() -> None:
    figures = bench("recovery")["figures"]
    for sign, strategy in (("KILL", "Hybrid"), ("STOP", "Chain"), ("TERM", "Chain")):
        found = figures[sign][strategy]
        assert found["losses"] >= 1
        assert (found["never_recovered"], found["lost"], found["duplicates"]) == (0, 0, 0)
    (old_head,) = figures["STOP"]["old_head"]
    assert old_head["acknowledged"] == 0
    assert old_head["refused"] + old_head["closed"] == old_head["sent"] > 1
    assert old_head["new_chain_applied"] > 0


@slow
@pytest.mark.timeout(300)
def test_speed_compares_the_same_work() -> None:
    figures = bench("speed")["figures"]
    assert figures["training"]["ratio"] > 0
    assert figures["transfer"]["tcp"]["ratio"] > 0


def aof(*commands: str) -> bytes:
    lines = []
    for command in commands:
        words = command.split()
        lines.append(f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words))
    return "".join(lines).encode()


def test_the_witness_remembers_everything_but_later_snapshots(tmp_path: Path) -> None:
    file = tmp_path / "appendonly.aof"
    file.write_bytes(
        aof(
            "SELECT 0",
            "SET snap:first x",
            "HSET p:shard:0 snap {} snap_id first snap_seq 1",
            "XADD p:shard:0:log 1-1 m {}",
            "XADD p:shard:0:records 2-1 r {}",
            "HSET p:shard:0 snap {} snap_id second snap_seq 2",
            "UNLINK snap:first",
            "XTRIM p:shard:0:records MINID 3-0",
            "XDEL p:shard:0:log 1-1",
            "HSET p:shard:0 trimmed 1",
        )
        + b"*3\r\n$3\r\nSET\r\n$4\r\ntorn"
    )
    with file.open("rb") as source:
        kept = [b" ".join(command).decode() for command in remembering(read_commands(source))]
    with file.open("rb") as source:
        assert count(read_commands(source)) == (1, 1, 2)
    assert kept == [
        "SELECT 0",
        "SET snap:first x",
        "HSET p:shard:0 snap {} snap_id first snap_seq 1",
        "XADD p:shard:0:log 1-1 m {}",
        "XADD p:shard:0:records 2-1 r {}",
        "HSET p:shard:0 trimmed 1",
    ]
