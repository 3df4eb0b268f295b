"""The reference worker: a task, trained in a loop that reads from top to bottom; or a user's script.

Exit codes: 0 the job has reached its goal (or this slot was taken over), 3 a fault that no restart would mend,
anything else a crash.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from outlast.api.config import ProcessConfig
from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast.model import optimizers
from outlast.model.flat import ManifestMismatch
from outlast.model.optimizers import OptimizerMismatch
from outlast.process.exit_codes import EXIT_CONFIGURATION
from outlast.process.fail_stop import fail_stop
from outlast.tasks.base import LoadedTask, TaskError, load_task
from outlast.worker.errors import TrainingError, TrainingFinished
from outlast.worker.extra_slots import ExtraSlots
from outlast.worker.optimizer import Optimizer, joined

log = logging.getLogger("outlast.worker")

_LAST_WORDS_S = 1.8  # a local run kills 2 s after SIGTERM


def train(task: LoadedTask, config: ProcessConfig, spec: JobSpec) -> None:
    """Compute gradients until the job has reached its goal, or this slot its last epoch."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    log.info("computes on %s", torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU")
    model = task.model().to(device).train()
    description = optimizers.spec_description(spec.training.optimizer)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in description["groups"][0].items()}
    optimizer = Optimizer(model, optimizers.OPTIMIZERS[description["name"]], config=config, **arguments)
    epochs = spec.training.stop_after.epochs
    last_batch = None if epochs is None else int(epochs * task.batches_per_epoch())
    while last_batch is None or optimizer.data.batch(optimizer.data.slots - 1, optimizer.next_step) < last_batch:
        optimizer.seed_step()
        batch = _to(device, task.batch(optimizer.next_batch))
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.drain()
    optimizer.close()


def _to(device: torch.device, batch: Any) -> Any:
    if device.type == "cpu":
        return batch
    return tuple(part.pin_memory().to(device, non_blocking=True) for part in batch)


def run_script(path: str, spec: JobSpec) -> None:
    """Run a user's script, as `python path` would; it trains through `outlast.Optimizer`."""
    if not Path(path).is_file():
        raise TaskError(f'spec.training.script: "{path}" is no file; give a path the worker can read')
    torch.manual_seed(spec.training.seed)
    sys.argv = [path]
    sys.path.insert(0, str(Path(path).resolve().parent))
    runpy.run_path(path, run_name="__main__")
    if not joined:
        raise TaskError(
            f'spec.training.script: "{path}" ended and has trained nothing: it made no outlast.Optimizer; wrap its '
            "optimizer in one, as examples/train_script.py does"
        )
    for optimizer in joined:
        optimizer.drain()
        optimizer.close()


def report_fault(config: ProcessConfig, kind: str, error: BaseException) -> None:
    """Say why, where the control plane finds it: the log's last line, and a file in a local run."""
    directory = config.extras.get("errors_dir")
    if directory:
        target = Path(directory) / f"{config.name}.json"
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps({"error": str(error), "kind": kind}))
        partial.replace(target)
    log.error("%s", error)


FAULTS: dict[type[BaseException], str] = {
    TaskError: "task",
    OptimizerMismatch: "config",
    ManifestMismatch: "shape",
    TrainingError: "training",
}


def end_as_planned() -> None:
    """SIGTERM: end now; where an outage's local steps are here alone, once Redis has them, or after `_LAST_WORDS_S`."""
    told = [optimizer.hand_over() for optimizer in joined]
    if not any(told):
        os._exit(128 + signal.SIGTERM)  # nothing here needs saving
    deadline = threading.Timer(_LAST_WORDS_S, os._exit, (128 + signal.SIGTERM,))
    deadline.daemon = True  # the step at hand may take longer than anybody waits
    deadline.start()


def main() -> None:
    """Run the worker that `OUTLAST_CONFIG` describes."""
    config = ProcessConfig.from_environment()
    spec = read_spec(config.spec)
    torch.set_num_threads(int(config.extras.get("threads", 1)))
    torch.use_deterministic_algorithms(spec.traits.barrier, warn_only=True)
    sys.setswitchinterval(0.0005)  # the threads that send and receive must not wait for the loop's Python
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: end_as_planned())
    fail_stop()
    if config.extras.get("slots_file"):
        ExtraSlots(config).start()
    try:
        if spec.training.script is not None:
            run_script(spec.training.script, spec)
        else:
            assert spec.training.task is not None
            search = list(config.extras.get("path", []))
            task = load_task(spec.training.task, spec.training.args, spec.training.seed, search)
            train(task, config, spec)
    except TrainingFinished as finished:
        log.info("%s", finished.message)
    except tuple(FAULTS) as error:
        report_fault(config, FAULTS[type(error)], error)
        raise SystemExit(EXIT_CONFIGURATION) from error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main()
