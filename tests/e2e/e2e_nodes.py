"""What pods wrote, as it lies on the nodes' disks, which are on this machine: workers' ledgers and checkpoints.

    KUBELET/pods/UID/volumes/kubernetes.io~empty-dir/ledger-JOB/worker-N-M.bin   goes with its pod
    KUBELET/e2e-ledgers/JOB/UID/worker-N-M.bin                                   the same file (a hard link), and stays
    KUBELET/local-path/CLAIM/JOB'S UID/ckpt-*                                    what the default class provides

A node without power shows no files; what was read of them before is kept.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from outlast.checkpoint.set import NAME, complete, parts_in
from outlast.checkpoint.store import CheckpointStore
from outlast.process.ledger import LedgerRecord, read_ledger, record_bytes

KEPT = "e2e-ledgers"
POLL_S = 0.2  # a worker that is made and gone within this time leaves no ledger


class Nodes:
    """The kubelets' folders. `find`: asks where they are, for a node that starts gets its folder anew."""

    def __init__(self, find: Callable[[], dict[str, Path]]) -> None:
        self._find = find
        self._ask()
        self._names = set(self._found)  # of all nodes, those without power as well
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._failure: OSError | None = None
        self._keeper = threading.Thread(target=self._keep_all, name="ledgers", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Raises what kept the ledgers from being kept."""
        self._ended.set()
        self._keeper.join()
        if self._failure is not None:
            raise self._failure

    def kubelets(self) -> dict[str, Path]:
        """Those of nodes that have power."""
        with self._lock:
            if not all(self._is_there(name) for name in self._names) and time.monotonic() > self._asked + 1:
                self._ask()
            return {name: path for name, path in self._found.items() if self._is_there(name)}

    def keep(self) -> None:
        """Give each worker's ledger a name that stays when its pod goes."""
        for kubelet in self.kubelets().values():
            for found in glob.glob(f"{kubelet}/pods/*/volumes/kubernetes.io~empty-dir/ledger-*/worker-*.bin"):
                uid, _, _, volume, name = found.removeprefix(f"{kubelet}/pods/").split("/")
                target = kubelet / KEPT / volume.removeprefix("ledger-") / uid / name
                with contextlib.suppress(FileExistsError, FileNotFoundError):  # kept before; gone meanwhile
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(found, target)

    def forget(self, job: str) -> None:
        for kubelet in self.kubelets().values():
            shutil.rmtree(kubelet / KEPT / job, ignore_errors=True)

    def checkpoints(self, job_uid: str, into: Path) -> CheckpointStore:
        """All that lies on the claims of a job that stands still, in one folder."""
        for kubelet in self.kubelets().values():
            for folder in glob.glob(f"{kubelet}/local-path/*/{job_uid}"):
                shutil.copytree(folder, into / job_uid, dirs_exist_ok=True)
        for directory in (into / job_uid).glob("ckpt-*"):
            _complete(directory, job_uid)
        return CheckpointStore(into, job_uid)

    def _keep_all(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                self.keep()
                self._failure = None
            except OSError as error:  # a node that goes; if it is more, the end of the session tells
                self._failure = error

    def _ask(self) -> None:
        self._found, self._asked = self._find(), time.monotonic()
        self._started = {name: _start_of(path) for name, path in self._found.items()}

    def _is_there(self, node: str) -> bool:
        path = self._found.get(node)
        return path is not None and (path / "pods").is_dir() and _start_of(path) == self._started[node]


def _start_of(path: Path) -> str:
    """When the process began that shows a path (/proc/PID/root/...): another one that gets its number sees another
    node."""
    if path.parts[1:2] != ("proc",):
        return ""
    try:
        return (Path(*path.parts[:3]) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"


def _complete(directory: Path, job_uid: str) -> None:
    """Give a set whose parts lay on several claims its manifest, if each shard has a part."""
    name = NAME.fullmatch(directory.name)
    parts = parts_in(directory)
    if name is not None and parts:
        history, version = int(name[1]), int(name[2])
        complete(directory, job_uid, 0, parts[0].shards, history, max(part.epoch for part in parts), version)


class Ledgers:
    """What the workers of one job noted. Each record is read once."""

    def __init__(self, nodes: Nodes, job: str) -> None:
        self._nodes, self._job = nodes, job
        self._offsets: dict[tuple[str, ...], int] = {}
        self._records: list[LedgerRecord] = []

    def forget(self) -> None:
        self._nodes.forget(self._job)

    def read(self) -> list[LedgerRecord]:
        """All records so far, in order of time."""
        self._nodes.keep()
        for node, kubelet in self._nodes.kubelets().items():
            for found in glob.glob(f"{kubelet}/{KEPT}/{self._job}/*/worker-*.bin"):
                key = (node, *found.rsplit("/", 2)[1:])
                offset = self._offsets.get(key, 0)
                records = list(read_ledger(Path(found), offset))
                self._offsets[key] = offset + len(records) * record_bytes()
                self._records += records
        self._records.sort(key=lambda record: record.t)
        return self._records
