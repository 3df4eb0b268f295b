"""The two ends of a transfer: a bare socket that echoes, and a client that pushes and pulls; both run as children.

`echo`: receives as many bytes as were agreed, then sends them back, into and from one preallocated buffer.
`measure`: alternates blocks of rounds with the echo and blocks with a real server, through the real client: each round
sends one gradient, waits until it is applied, and has received the fresh weights. Packing gradients and loading weights
into a model are not part of it: a socket does neither.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast.worker.client import Client

BUFFER_BYTES = 256 << 10
WARM_UP = 3  # rounds


def tuned(address: str) -> tuple[socket.socket, Any]:
    """A socket for `unix:/path` or `tcp:host:port`, with the buffers that suit loopback, and where it belongs."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        where: Any = rest
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        host, _, port = rest.rpartition(":")
        where = (host, int(port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return sock, where


def receive_all(sock: socket.socket, view: memoryview) -> bool:
    """Fill `view`; False when the peer is gone."""
    done = 0
    while done < len(view):
        n = sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if n == 0:
            return False
        done += n
    return True


def touched(nbytes: int) -> memoryview:
    """Preallocated memory whose pages exist."""
    memory = bytearray(nbytes)
    memory[:: 1 << 12] = b"\x01" * len(range(0, nbytes, 1 << 12))
    return memoryview(memory)


def echo() -> int:
    """Serve one connection after the other, on the address and with the size that standard input names."""
    arguments = json.loads(sys.stdin.readline())
    listener, where = tuned(arguments["address"])
    listener.bind(where)
    listener.listen()
    view = touched(arguments["bytes"])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        sock, _ = listener.accept()
        with sock:
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while receive_all(sock, view):
                sock.sendall(view)


def measure() -> int:
    """Print one JSON line: seconds of each block with the echo and of each with Outlast, in turns."""
    sys.setswitchinterval(0.0005)  # as a worker does
    arguments = json.loads(sys.stdin.readline())
    bare, where = tuned(arguments["echo"])
    bare.connect(where)
    view = touched(arguments["bytes"])

    def echo_round() -> None:
        bare.sendall(view)
        if not receive_all(bare, view):
            raise SystemExit("the echo is gone")

    outlast_round, client = outlast_rounds(arguments["config"], arguments["bytes"] // 4)
    for _ in range(WARM_UP):
        echo_round()
        outlast_round()
    blocks: dict[str, list[float]] = {"echo_s": [], "outlast_s": []}
    for _ in range(arguments["blocks"]):
        blocks["echo_s"].append(timed(echo_round, arguments["rounds"]))
        blocks["outlast_s"].append(timed(outlast_round, arguments["rounds"]))
    result = {**blocks, "version": client.inbox.versions[0]}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    return 0


def timed(call: Callable[[], None], times: int) -> float:
    begin = time.monotonic()
    for _ in range(times):
        call()
    return time.monotonic() - begin


def outlast_rounds(raw_config: dict[str, Any], numel: int) -> tuple[Callable[[], None], Client]:
    """A function that pushes one gradient of `numel` elements and returns with the fresh weights received."""
    import torch

    from outlast.api.config import ProcessConfig
    from outlast.api.job import read_spec
    from outlast.chain.events import Kind
    from outlast.model import optimizers
    from outlast.model.flat import Manifest, TensorPlace
    from outlast.worker.client import Client
    from outlast.worker.events import Outcome

    torch.set_num_threads(1)
    config = ProcessConfig.from_json(json.dumps(raw_config))
    spec = read_spec(config.spec)
    manifest = Manifest((TensorPlace("w", (numel,), "float32", 0, numel, 0),), numel, numel)
    description = optimizers.spec_description(spec.training.optimizer)
    client = Client(config, spec, manifest, description, torch.ones(numel))
    client.start()
    client.request()
    client.wait_until(lambda: client.inbox.arrivals > 0)
    filled: set[int] = set()
    step = 0

    def one() -> None:
        nonlocal step
        step += 1
        arrivals = client.inbox.arrivals
        lease = client.take()
        assert lease is not None
        if lease.tensor.data_ptr() not in filled:  # pages that exist, and numbers that are no denormals
            lease.tensor.fill_(1e-3)
            filled.add(lease.tensor.data_ptr())
        item = client.submit(step, step, lease, Kind.UPDATE, 1.0)
        del lease
        client.wait_until(lambda: item.outcome is not None and client.inbox.arrivals > arrivals)
        if item.outcome is not Outcome.SERVER:
            raise SystemExit(f"gradient {step} came to nothing: {item.outcome}, {client.outbox.failure}")

    return one, client
