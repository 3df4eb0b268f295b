"""Plain PyTorch, to compare with: one process that trains a task by itself and talks to nobody.

The reference worker's loop without Outlast: the batch by its index, the loss, backward, and one step of the same torch
optimizer on the process's own parameters. One thread, as a worker has.

Run as a child: a JSON line of arguments on standard input; it answers `ready`, computes from the line `go` on, and
ends with `{"gradients", "seconds"}`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

WARM_UP = 30  # gradients


def main() -> int:
    import torch

    from outlast.tasks.base import load_task

    arguments: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    task = load_task(arguments["task"], arguments["args"], arguments["seed"])
    model = task.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments["lr"])
    index = arguments["slot"]

    def gradient() -> None:
        nonlocal index
        loss = task.loss(model, task.batch(index))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        index += arguments["slots"]

    for _ in range(WARM_UP):
        gradient()
    _say("ready")
    sys.stdin.readline()
    begin, done = time.monotonic(), 0
    while (now := time.monotonic()) < begin + arguments["seconds"]:
        gradient()
        done += 1
    _say(json.dumps({"gradients": done, "seconds": now - begin}))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
