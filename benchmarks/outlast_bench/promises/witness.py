"""A witness for Stateless: one server that applies the whole log of a finished run from its beginning, without a break.

The job's Redis trims its log behind every snapshot, so at the end of a run the log is gone. Its append-only file is
not: it holds every command that Redis carried out, in order. The witness's Redis is made from that very file, less the
commands that forget: what deletes entries, records and snapshots, and what moves the pointer from the first snapshot
(of version 0) to a later one. Gradients, their order, and the records of how they were grouped and weighed are thus
the bytes that the job's own servers wrote. A server started over it finds version 0 and replays every record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from outlast.api.server_status import ServerStatus
from outlast_bench.promises.common import BenchError
from outlast_bench.promises.processes import redis, server, server_config, until, view_of, workplace
from outlast_operator.local.directory import RunConfig

FORGETTING = (b"DEL", b"UNLINK", b"XDEL", b"XTRIM")
Command = list[bytes]


@dataclass(frozen=True)
class Witnessed:
    """What the witness came to, and what was in the log: `snapshots` moved the pointer, `records` are updates."""

    version: int
    digest: str
    gradients: int
    records: int
    snapshots: int


def append_only_file(directory: Path) -> Path:
    """The one file that holds everything since the start. Raises `BenchError` if Redis has rewritten it meanwhile."""
    single = directory / "appendonly.aof"
    increments = sorted((directory / "appendonlydir").glob("*.incr.aof"))
    found = increments or ([single] if single.is_file() else [])
    if len(found) != 1 or (increments and not increments[0].name.endswith(".1.incr.aof")):
        names = ", ".join(path.name for path in found) or "nothing"
        raise BenchError(
            f"{directory}: expected one append-only file since the start, found {names}; use a smaller job"
        )
    return found[0]


def read_commands(file: IO[bytes]) -> Iterator[Command]:
    """Commands of an append-only file (RESP arrays); a torn last one is left out."""
    while head := file.readline():
        if head.startswith(b"#"):
            continue  # an annotation (a timestamp)
        if not head.startswith(b"*"):
            raise BenchError(f"an append-only file does not continue with {head[:20]!r}")
        command = []
        for _ in range(int(head[1:])):
            length = file.readline()
            body = file.read(int(length[1:]) + 2) if length.startswith(b"$") else b""
            if not body.endswith(b"\r\n"):
                return
            command.append(body[:-2])
        yield command


def flips_snapshot(command: Command) -> bool:
    """Whether it points the shard to another snapshot."""
    return command[0].upper() == b"HSET" and b"snap_id" in command[2::2]


def remembering(commands: Iterable[Command]) -> Iterator[Command]:
    """All commands but those that forget, and no snapshot but the first."""
    flipped = False
    for command in commands:
        if command[0].upper() in FORGETTING:
            continue
        if flips_snapshot(command):
            if flipped:
                continue
            flipped = True
        yield command


def encode(command: Command) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)


def count(commands: Iterable[Command]) -> tuple[int, int, int]:
    """(gradients, records, snapshots) that a file's commands added."""
    gradients = records = snapshots = 0
    for command in commands:
        if command[0].upper() == b"XADD":
            gradients += command[1].endswith(b":log")
            records += command[1].endswith(b":records")
        snapshots += flips_snapshot(command)
    return gradients, records, snapshots


def bear_witness(run_directory: Path, config: RunConfig, epoch: int, version: int) -> Witnessed:
    """Let a fresh server apply the run's whole log. `epoch`: above all of the run's; `version`: the run's last.

    Raises `BenchError` when the witness does not come to that version.
    """
    source = append_only_file(run_directory / "redis")
    with source.open("rb") as file:
        gradients, records, snapshots = count(read_commands(file))
    with workplace() as root:
        with source.open("rb") as file, (root / "appendonly.aof").open("wb") as target:
            for command in remembering(read_commands(file)):
                target.write(encode(command))
        with redis(root) as url:
            settings = server_config(config.spec, [f"unix:{root}/witness.sock"], url, config.job_uid)
            with server(settings, 0, root) as witness:
                witness.control.install(view_of(epoch, [witness], restore="buffer"))

                def arrived() -> ServerStatus | None:
                    status = witness.control.probe()
                    if status.restore_error:
                        raise BenchError(f"the witness could not restore: {status.restore_error}")
                    return status if status.initialised and status.version >= version else None

                until(arrived, f"the witness coming to version {version}", 120.0)
                table = witness.control.table()
    return Witnessed(int(table["version"]), str(table["digest"]), gradients, records, snapshots)
