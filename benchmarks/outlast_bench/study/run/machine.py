"""What a study was measured on: the machine, this boot of it, the code, and who else had its cores meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

import outlast
from outlast_bench.study.design.records import Machine

GIT_PATIENCE_S = 5.0
# Folders of a checkout; what differs elsewhere cannot change a figure.
CODE = ("benchmarks/outlast_bench", "operator", "trainer")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CORE_TIMES = Path("/proc/stat")
BUSY = 0.25  # of the cores, by others: more shows in every figure


def this_machine() -> Machine:
    """Facts of this machine and of the software on it; imports no torch."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        os=platform.platform(),
        python=platform.python_version(),
        torch=_version("torch"),
        outlast=outlast.__version__,
        commit=commit_of_code(),
    )


def busy(load: float, cores: int) -> str:
    """A warning in words where the load average says that others use this machine's cores; else empty."""
    if load <= BUSY * cores:
        return ""
    return (
        f"this machine is busy: a load average of {load:.1f} on {cores} cores; whatever else runs slows some runs and "
        "not others, and the study takes longer. Better wait until it is idle"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit_of_code() -> str | None:
    """The last commit that touched the code, with `-changed` if its files differ from it; None outside a checkout.

    Of the code alone: a study that is gone on with after a change of the documentation was made by one code.
    """
    top = Path(__file__).resolve().parents[4]
    if not (top / ".git").exists():  # installed, perhaps below a checkout of something else
        return None
    last = _git(top, "log", "-1", "--format=%h", "--abbrev=12", "--", *CODE)
    changed = _git(top, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return None if not last or changed is None else last + ("-changed" if changed else "")


def _git(top: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(top), *words], capture_output=True, text=True, timeout=GIT_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def boot_id() -> str | None:
    """What tells this machine, since it was started, from others of its kind; None where the kernel has none."""
    try:
        return BOOT_ID.read_text().strip() or None
    except OSError:
        return None


@dataclass(frozen=True)
class CoreTimes:
    """What the cores that this process may use have done since the start, in ticks. `busy` leaves out `stolen`."""

    busy: int
    stolen: int  # by other guests of the same host
    total: int


def core_times() -> CoreTimes | None:
    """None where there is no /proc/stat, or it has not these cores."""
    try:
        lines = [line.split() for line in CORE_TIMES.read_text().splitlines()]
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        # user, nice, system, idle, iowait, irq, softirq, steal; what follows (guests) is in user and nice already
        rows = [[int(ticks) for ticks in words[1:9]] for words in lines if words and words[0] in mine]
        idle, stolen = sum(row[3] + row[4] for row in rows), sum(row[7] for row in rows)
    except (OSError, ValueError, IndexError):
        return None
    total = sum(sum(row) for row in rows)
    return CoreTimes(total - idle - stolen, stolen, total) if rows else None


def shares(before: CoreTimes | None, after: CoreTimes | None) -> tuple[float | None, float | None]:
    """(busy with anything, stolen): shares of the cores' time between the two; None where it is not known."""
    if before is None or after is None or after.total <= before.total:
        return None, None
    total = after.total - before.total
    return round((after.busy - before.busy) / total, 4), round((after.stolen - before.stolen) / total, 4)
