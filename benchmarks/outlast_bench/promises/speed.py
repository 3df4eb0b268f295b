"""`outlast bench speed`: what remains of the machine's speed with Outlast in between.

Training: the FashionMNIST CNN with two workers and one server (strategy Checkpoint, Async, no evaluation, no
checkpoint but the first) against two plain PyTorch processes on the same cores that compute the same task in the same
loop, each with an optimizer step of its own, and never communicate (plain.py). They take turns; a round's ratio is
Outlast's rate over the mean of the plain rates before and after it.

Transfer: push, apply and pull of 46.8 MB (ResNet-18's parameters) by one worker, through a real server process and the
real client, against a bare socket that echoes as many bytes between two processes (transfer.py), in turns, over TCP;
Unix sockets are shown as well.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from bisect import bisect_left, bisect_right
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import IO, Any

from outlast.process.ledger import Fact
from outlast_bench.promises.common import (
    FASHION_MNIST,
    BenchError,
    Outcome,
    Progress,
    Settings,
    make_job,
    rounded,
    run_job,
    table,
)
from outlast_bench.promises.processes import python, server, server_config, until, view_of, workplace

NAME = "speed"
HELP = "gradients a second beside plain PyTorch; push, apply and pull beside a bare socket"
TRAINING_RATIO = 0.7
TRANSFER_RATIO = 0.6
MUST = (
    "FashionMNIST CNN, 2 workers, Async, 1 server: gradients/s >= 0.7 of two plain PyTorch processes side by side; "
    "push + apply + pull of 46.8 MB over TCP >= 0.6 of a bare socket echo of the same bytes"
)
RUNS = 5  # rounds of each comparison

WORKERS = 2
LR = 0.01
NUMEL = 11_700_000  # 46.8 MB of float32
ROUNDS_A_BLOCK = 10
SETTLE_S = 1.0  # of a run, not counted


def measure(settings: Settings) -> Outcome:
    runs = settings.count(RUNS)
    problems: list[str] = []
    transports = ("tcp",) if settings.short else ("tcp", "unix")
    with Progress(settings.console, 2 * runs + 1 + len(transports), "speed") as progress:
        training = _training(settings, progress, runs, problems)
        transfers = {t: _transfer(settings, progress, t, 2 * runs) for t in transports}
    _show(settings, training, transfers)
    if training["ratio"] is None or training["ratio"] < TRAINING_RATIO:
        problems.append(f"training runs at {training['ratio']} of plain PyTorch, at least {TRAINING_RATIO} must be")
    if transfers["tcp"]["ratio"] < TRANSFER_RATIO:
        problems.append(
            f"a transfer runs at {transfers['tcp']['ratio']} of a bare echo, at least {TRANSFER_RATIO} must be"
        )
    if settings.short:
        problems = []  # a trial says nothing about speed
    return Outcome({"training": training, "transfer": transfers}, problems)


# --- training ---


def _training(settings: Settings, progress: Progress, runs: int, problems: list[str]) -> dict[str, Any]:
    seconds = 1.0 if settings.short else 6.0
    plain, ours = [_plain(settings, progress, seconds)], []
    for n in range(runs):
        progress.step(f"two workers and a server, {seconds:g} s")
        try:
            ours.append(_trained(settings, progress, seconds, n))
        except BenchError as error:
            problems.append(str(error))
            break
        plain.append(_plain(settings, progress, seconds))
    ratios = [rate / ((a + b) / 2.0) for rate, a, b in zip(ours, plain[:-1], plain[1:], strict=False)]
    return {
        "plain_per_s": [rounded(rate, 1) for rate in plain],
        "outlast_per_s": [rounded(rate, 1) for rate in ours],
        "ratios": [rounded(ratio) for ratio in ratios],
        "ratio": rounded(median(ratios)) if ratios else None,
        "plain_includes_optimizer_step": True,
        "transport": "unix, shared memory",
    }


def _trained(settings: Settings, progress: Progress, seconds: float, n: int) -> float:
    """Gradients acknowledged by the server a second, over `seconds` of a run that has settled."""
    job = make_job(
        "bench-speed",
        "Checkpoint",
        task=FASHION_MNIST,
        seed=settings.seed + n,
        seconds=seconds + 2 * SETTLE_S,
        workers=WORKERS,
        optimizer={"lr": LR},
        recovery={"checkpoint": {"everyUpdates": None, "everySeconds": 3600}, "staleness": {"policy": "Sum"}},
    )
    ran = run_job(job, [], progress, label="training", deadline_s=seconds + 120.0)
    times = [r.t for r in ran.result.run.heard.ledger if r.fact is Fact.ACKNOWLEDGED]
    ran.discard()
    if not times:
        raise BenchError("two workers and a server: no gradient was acknowledged")
    begin = times[0] + SETTLE_S
    return (bisect_right(times, begin + seconds) - bisect_left(times, begin)) / seconds


def _plain(settings: Settings, progress: Progress, seconds: float) -> float:
    """Gradients a second of all plain processes together, all of them computing all the time."""
    progress.step(f"two plain processes, {seconds:g} s")
    with workplace() as root, contextlib.ExitStack() as stack:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        children = []
        for slot in range(WORKERS):
            child = stack.enter_context(python("outlast_bench.promises.plain:main", root / f"{slot}.log", **pipes))
            arguments = {
                "task": FASHION_MNIST, "args": {}, "seed": settings.seed, "lr": LR, "slot": slot, "slots": WORKERS,
                "seconds": seconds,
            }  # fmt: skip
            _tell(child, json.dumps(arguments))
            children.append(child)
        for slot, child in enumerate(children):
            _hear(child, root / f"{slot}.log")
        for child in children:
            _tell(child, "go")
        results = [json.loads(_hear(child, root / f"{slot}.log")) for slot, child in enumerate(children)]
    return float(sum(r["gradients"] / r["seconds"] for r in results))


# --- transfer ---


def _transfer(settings: Settings, progress: Progress, transport: str, blocks: int) -> dict[str, Any]:
    numel = NUMEL // 20 if settings.short else NUMEL
    progress.step(f"{numel * 4 / 1e6:.1f} MB over {transport}, {blocks} blocks of {ROUNDS_A_BLOCK} rounds each")
    spec = make_job("transfer", "Checkpoint", updates=10**9, workers=1, optimizer={"lr": LR}).spec.to_json()
    with workplace() as root, contextlib.ExitStack() as stack:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        addresses = _addresses(transport, root)
        echo = stack.enter_context(python("outlast_bench.promises.transfer:echo", root / "echo.log", **pipes))
        _tell(echo, json.dumps({"address": addresses[0], "bytes": numel * 4}))
        _hear(echo, root / "echo.log")
        config = server_config(spec, addresses[1:])
        standing = stack.enter_context(server(config, 0, root))
        standing.control.install(view_of(1, [standing]))
        until(lambda: standing.control.probe().epoch == 1, "the server taking its view", 20.0)
        client = stack.enter_context(python("outlast_bench.promises.transfer:measure", root / "client.log", **pipes))
        worker = asdict(replace(config, role="worker", name="worker-0"))
        order = {
            "echo": addresses[0], "config": worker, "bytes": numel * 4, "blocks": blocks, "rounds": ROUNDS_A_BLOCK,
        }  # fmt: skip
        _tell(client, json.dumps(order))
        raw = json.loads(_hear(client, root / "client.log"))
        applied = standing.control.probe().version
    if applied != raw["version"]:
        raise BenchError(f"the server applied {applied} gradients, the client saw {raw['version']}")
    return {
        "bytes": numel * 4,
        "echo_rounds_per_s": rounded(ROUNDS_A_BLOCK / median(raw["echo_s"]), 2),
        "outlast_rounds_per_s": rounded(ROUNDS_A_BLOCK / median(raw["outlast_s"]), 2),
        "ratio": round(median(e / o for e, o in zip(raw["echo_s"], raw["outlast_s"], strict=True)), 3),
    }


def _addresses(transport: str, root: Path) -> list[str]:
    """Two free ones: of the echo and of the server."""
    if transport == "unix":
        return [f"unix:{root}/echo.sock", f"unix:{root}/server.sock"]
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(2)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [f"tcp:127.0.0.1:{sock.getsockname()[1]}" for sock in socks]


def _tell(child: subprocess.Popen[bytes], line: str) -> None:
    pipe: IO[bytes] | None = child.stdin
    assert pipe is not None
    pipe.write(line.encode() + b"\n")
    pipe.flush()


def _hear(child: subprocess.Popen[bytes], log: Path) -> str:
    """The child's next line. Raises `BenchError` with its log's end when it died instead."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise BenchError(f"a helper process died: {log.read_text(errors='replace')[-500:]}")
    return line.decode()


# --- what is shown ---


def _show(settings: Settings, training: dict[str, Any], transfers: dict[str, dict[str, Any]]) -> None:
    def middle(values: list[float]) -> str:
        return f"{median(values):.1f}" if values else "-"

    shown = table("side by side, in turns; medians", "what", "without Outlast", "with", "ratio", "at least")
    ratio = "-" if training["ratio"] is None else f"{training['ratio']:.3f}"
    shown.add_row(
        "gradients/s: plain PyTorch (with its own optimizer step); two workers, one server",
        middle(training["plain_per_s"]), middle(training["outlast_per_s"]), ratio, str(TRAINING_RATIO),
    )  # fmt: skip
    for transport, t in transfers.items():
        shown.add_row(
            f"rounds/s of {t['bytes'] / 1e6:.1f} MB, {transport}: echo; push + apply + pull",
            f"{t['echo_rounds_per_s']:.1f}", f"{t['outlast_rounds_per_s']:.1f}", f"{t['ratio']:.3f}",
            str(TRANSFER_RATIO) if transport == "tcp" else "",
        )  # fmt: skip
    settings.console.print(shown)
