"""Fill another slot as well: a barrier waits for slots, not for pods.

Where a slot has been without a process for `workers.graceSeconds`, the planner gives it to a living worker, as a new
incarnation. That worker starts a second process beside itself for it: gradients draw on process-wide random state,
so two slots in one process would disturb each other's.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from outlast.api.config import ENVIRONMENT_VARIABLE, ProcessConfig
from outlast.process.prctl import die_with_parent

log = logging.getLogger("outlast.worker")

_POLL_S = 0.25


class ExtraSlots:
    """Watches the file {slot: incarnation} that the planner's runtime writes, and starts a process for each."""

    def __init__(self, config: ProcessConfig) -> None:
        self._config = config
        self._path = Path(config.extras["slots_file"])
        self._filled: dict[int, int] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        threading.Thread(target=self._watch, name="extra-slots", daemon=True).start()

    def _watch(self) -> None:
        while True:
            for slot, incarnation in self._assigned().items():
                if incarnation > self._filled.get(slot, 0):
                    self._filled[slot] = incarnation
                    self._fill(slot, incarnation)
            self._processes = [p for p in self._processes if p.poll() is None]
            time.sleep(_POLL_S)  # a file on a volume tells nobody that it has changed

    def _assigned(self) -> dict[int, int]:
        try:
            raw = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return {int(slot): int(incarnation) for slot, incarnation in raw.items()}

    def _fill(self, slot: int, incarnation: int) -> None:
        log.info("fills slot %d too, as incarnation %d", slot, incarnation)
        extras = {key: value for key, value in self._config.extras.items() if key != "slots_file"}
        config = replace(self._config, slot=slot, incarnation=incarnation, extras=extras)
        environment = {**os.environ, ENVIRONMENT_VARIABLE: config.to_json()}
        parent = os.getpid()
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "outlast.worker.main"],
                env=environment,
                preexec_fn=lambda: die_with_parent(parent),
            )
        )
