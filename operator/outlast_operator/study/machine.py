"""What a study was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

import outlast
from outlast_operator.study.records import Machine

GIT_PATIENCE_S = 5.0
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
    """The commit that this code was checked out of, with `-changed` if files differ; None outside a checkout."""
    here = Path(__file__).parent
    answers = []
    for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=GIT_PATIENCE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("-changed" if answers[1] else "")
