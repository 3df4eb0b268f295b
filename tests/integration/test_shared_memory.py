"""A worker and a server on one host read out of each other's memory: pauses, refusals and torn gradients."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_server import Job

from outlast.wire.dial import connect
from outlast.wire.frames import DType, Flag, Header, Op
from outlast.wire.pool import Lease
from outlast.wire.shared_memory import Place, SharedPool
from outlast.wire.sharing import Sharing

pytestmark = pytest.mark.timeout(60)
NUMEL = 5000
LR = 0.5


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path that is short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="olshm-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def job(directory: Path) -> Iterator[Job]:
    job = Job(directory, "Async", 2, {"name": "SGD", "lr": LR}, 10_000)
    yield job
    job.close()


class Worker:
    """One slot that speaks the protocol itself."""

    def __init__(self, job: Job, slot: int) -> None:
        self.slot, self.step, self.pool = slot, 0, SharedPool(NUMEL, limit=4)
        hello = {"role": "worker", "name": f"worker-{slot}", "shared_memory": True}
        connection, welcome = connect(job.address, "uid", "secret", hello, 10.0)
        self.link = Sharing(connection, welcome["shared_memory"])

    def header(self, flags: int) -> Header:
        return Header(
            Op.PUSH, DType.FLOAT32, flags, slot=self.slot, incarnation=1, epoch=1, first_step=self.step, step=self.step
        )

    def initialise(self) -> None:
        places = [{"name": "w", "shape": [NUMEL], "dtype": "float32", "offset": 0, "numel": NUMEL, "group": 0}]
        group = {"lr": LR, "momentum": 0.0}
        meta = {
            "manifest": {"places": places, "parameters": NUMEL, "numel": NUMEL},
            "optimizer": {"name": "SGD", "groups": [group]},
            "start": 0,
            "stop": NUMEL,
        }
        payload = memoryview(torch.zeros(NUMEL).numpy()).cast("B")
        self.link.connection.send(self.header(Flag.INIT), meta, payload)
        assert self.answer()[0].op == Op.ACKNOWLEDGED

    def gradient(self, value: float) -> Lease:
        lease = self.pool.take()
        assert lease is not None
        lease.tensor.fill_(value)
        return lease

    def push(self, lease: Lease, flags: int = 0) -> None:
        self.step += 1
        self.link.send(self.header(flags), None, self.pool, lease)

    def pull(self) -> None:
        self.link.connection.send(Header(Op.PULL, slot=self.slot, incarnation=1, epoch=1))

    def answer(self) -> tuple[Header, dict[str, Any]]:
        while True:
            header, meta = self.link.connection.receive()
            if header.op != Op.WAITING:
                return header, meta


@pytest.fixture
def worker(job: Job) -> Iterator[Worker]:
    worker = Worker(job, 0)
    worker.initialise()
    yield worker
    worker.link.connection.close()


def weights(job: Job) -> float:
    """The parameters, all of which are the same number here."""
    with job.server.core.lock:
        assert job.server.state.parameters is not None
        vector = job.server.state.parameters.vector
        assert vector.eq(vector[0]).all(), "torn"
        return float(vector[0])


def test_nothing_but_headers_goes_through_the_socket(job: Job, worker: Worker) -> None:
    before = worker.link.connection.bytes_sent, worker.link.connection.bytes_received
    out = torch.zeros(NUMEL)
    for n in range(1, 6):
        worker.push(worker.gradient(2.0), Flag.WANT_WEIGHTS)
        header, meta = worker.answer()
        assert (header.op, header.version) == (Op.ACKNOWLEDGED, n)
        assert worker.link.read(Place.from_json(meta["shared"]), out)
        assert out.eq(-n * 2.0 * LR).all()
    assert worker.link.connection.bytes_sent - before[0] < NUMEL
    assert worker.link.connection.bytes_received - before[1] < NUMEL
    assert job.server.status.now().pushed_bytes == 6 * NUMEL * 4, "the initial weights too"


def test_a_gradient_that_was_overwritten_before_it_was_read_is_never_applied(job: Job, worker: Worker) -> None:
    worker.push(worker.gradient(1.0))
    assert worker.answer()[0].op == Op.ACKNOWLEDGED
    lease = worker.gradient(1.0)
    place = worker.pool.place(lease, 0, NUMEL)
    assert place is not None
    del lease
    lease = worker.gradient(7.0)  # the worker has moved on: its gradient is safe in the buffer
    worker.step += 1
    worker.link.connection.send(worker.header(Flag.SHARED), {"shared": place.to_json()})
    with pytest.raises(ConnectionError):
        worker.answer()
    assert weights(job) == -1.0 * LR
    del lease
    again = Worker(job, 0)  # the connection is lost, the server is not; the step was never applied
    again.step = 1
    again.push(again.gradient(1.0))
    header, _ = again.answer()
    assert (header.op, header.flags & Flag.DUPLICATE, header.version) == (Op.ACKNOWLEDGED, 0, 2)
    assert weights(job) == -2.0 * LR
    again.link.connection.close()


def test_weights_stay_until_their_reader_asks_for_the_next(job: Job, worker: Worker) -> None:
    worker.push(worker.gradient(2.0), Flag.WANT_WEIGHTS)
    _, shown = worker.answer()
    busy, out = Worker(job, 1), torch.zeros(NUMEL)
    for _ in range(100):  # far more than there are snapshots
        busy.push(busy.gradient(1.0), Flag.WANT_WEIGHTS)
        _, meta = busy.answer()
        assert busy.link.read(Place.from_json(meta["shared"]), out)
    assert worker.link.read(Place.from_json(shown["shared"]), out)
    assert out.eq(-2.0 * LR).all()
    worker.push(worker.gradient(0.0), Flag.WANT_WEIGHTS)
    worker.answer()
    for _ in range(100):
        busy.push(busy.gradient(1.0), Flag.WANT_WEIGHTS)
        busy.answer()
    assert not worker.link.read(Place.from_json(shown["shared"]), out), (
        "the memory of weights that were taken is used again"
    )
    busy.link.connection.close()


def test_readers_that_take_nothing_stop_nobody_and_keep_their_connections(job: Job, worker: Worker) -> None:
    idle, out = [], torch.zeros(NUMEL)
    for _ in range(20):  # each is shown weights of its own version, and does not look at them
        worker.push(worker.gradient(1.0), Flag.WANT_WEIGHTS)
        assert worker.answer()[0].op == Op.ACKNOWLEDGED
        reader = Worker(job, 1)
        reader.pull()
        header, meta = reader.answer()
        assert header.op == Op.WEIGHTS
        idle.append((reader, meta))
    assert weights(job) == -20.0 * LR
    late = [not reader.link.read(Place.from_json(meta["shared"]), out) for reader, meta in idle]
    assert late[0], "more readers than snapshots: the first was left without"
    assert not late[-1]
    for reader, _ in idle:
        reader.pull()
        _, meta = reader.answer()
        assert reader.link.read(Place.from_json(meta["shared"]), out)
        assert out.eq(-20.0 * LR).all()
        reader.link.connection.close()


@pytest.mark.parametrize("consistency", ["Sync", "Async"])
def test_whoever_reads_too_late_tries_again(directory: Path, consistency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = Sharing.read, 0

    def read_or_be_too_late(self: Sharing, place: Place, out: torch.Tensor, *more: Any) -> bool:
        nonlocal calls
        calls += 1
        return read(self, place, out, *more) and calls % 5 != 0

    monkeypatch.setattr(Sharing, "read", read_or_be_too_late)
    job = Job(directory, consistency, 1, {"name": "SGD", "lr": LR}, 10_000)
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = job.join(model, lr=LR)
    for _ in range(30):
        model.weight.grad = torch.full((1, 4), 0.25)
        optimizer.step()
    assert optimizer.drain(20.0)
    assert calls > 40
    assert job.server.state.parameters is not None
    assert job.server.state.parameters.version == 30
    assert job.server.state.parameters.vector.tolist() == pytest.approx([1.0 - 30 * 0.25 * LR] * 4)
    job.close()


def run_chain(directory: Path, steps: int, transport: str = "unix") -> Job:
    """A head and its successor, and one worker whose gradients they have all applied."""
    job = Job(directory, "Async", 1, {"name": "SGD", "lr": LR}, 10_000, transport, replicas=2)
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = job.join(model, lr=LR)
    for _ in range(steps):
        model.weight.grad = torch.full((1, 4), 0.25)
        optimizer.step()
    assert optimizer.drain(20.0)
    for server in job.servers:
        assert server.state.parameters is not None
        assert server.state.parameters.version == steps
        assert server.state.parameters.vector.tolist() == pytest.approx([1.0 - steps * 0.25 * LR] * 4)
    return job


def forwarded(job: Job) -> int:
    """Gradients that the head keeps for its successor, which has not acknowledged them."""
    (link,) = job.server.links.links.values()
    return len(link._sent)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_successor_reads_gradients_in_its_predecessors_memory(
    directory: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, try_send, shown, at_once = Sharing.send, Sharing.try_send, [], 0

    def send_and_count(self: Sharing, header: Header, *more: Any) -> bool:
        shared = send(self, header, *more)
        if header.op == Op.FORWARD:
            shown.append(shared)
        return shared

    def try_and_count(self: Sharing, *arguments: Any) -> bool:
        nonlocal at_once
        sent = try_send(self, *arguments)
        if sent:
            shown.append(True)
            at_once += 1
        return sent

    monkeypatch.setattr(Sharing, "send", send_and_count)
    monkeypatch.setattr(Sharing, "try_send", try_and_count)
    job = run_chain(directory, 20, transport)
    assert shown == [transport == "unix"] * 20
    assert (at_once > 0) == (transport == "unix"), "by whoever applied it, once its memory was shown"
    assert forwarded(job) == 0, "what is acknowledged is not kept for it any more"
    job.close()


def test_a_successor_that_reads_too_late_is_sent_it_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was paused, while the head gave up the link and used the memory for something else."""
    read, calls = Sharing.read, 0

    def read_or_be_too_late(self: Sharing, place: Place, out: torch.Tensor, *more: Any) -> bool:
        nonlocal calls
        if more != (None,):  # a worker's, or its server's
            return read(self, place, out, *more)
        calls += 1
        return read(self, place, out, *more) and calls % 5 != 0

    monkeypatch.setattr(Sharing, "read", read_or_be_too_late)
    job = run_chain(directory, 30)
    assert calls > 30
    job.close()


def test_where_the_system_gives_no_shared_memory_the_socket_carries_everything(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "memfd_create")

    monkeypatch.setattr("outlast.wire.shared_memory.os.memfd_create", refuse)
    job = Job(directory, "Sync", 1, {"name": "SGD", "lr": LR}, 10_000)
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = job.join(model, lr=LR)
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones(1, 4)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - LR)
    assert "which is slower" in caplog.text
    job.close()


@pytest.mark.parametrize(
    ("shared", "flags"),
    [(None, 0), ([9, 0, NUMEL * 4, 1], 0), ([0, 0, 4, 1], 0), ([0, 0, NUMEL * 4, 1], Flag.INIT)],
    ids=["no place", "outside", "short", "initial weights"],
)
def test_a_place_that_is_wrong_closes_that_connection_alone(job: Job, worker: Worker, shared: Any, flags: int) -> None:
    worker.push(worker.gradient(1.0))
    worker.answer()
    worker.step += 1
    worker.link.connection.send(worker.header(Flag.SHARED | flags), {"shared": shared})
    with pytest.raises(ConnectionError):
        worker.answer()
    again = Worker(job, 0)
    again.step = 1
    again.push(again.gradient(1.0))
    assert again.answer()[0].op == Op.ACKNOWLEDGED
    again.link.connection.close()
