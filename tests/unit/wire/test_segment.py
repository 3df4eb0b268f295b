"""Memory that a peer reads in place: what was overwritten is never used, and no peer can make a reader fault."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from outlast.server.readers import Readers
from outlast.wire.connection import Connection
from outlast.wire.frames import Header, Op, ProtocolError
from outlast.wire.shared_memory import Mapping, Place, SharedPool
from outlast.wire.sharing import Sharing

NUMEL = 3000


def mapping_of(pool: SharedPool) -> Mapping:
    return Mapping(os.dup(pool.fd))


def place(pool: SharedPool, lease: object, first: int = 0, last: int = NUMEL) -> Place:
    found = pool.place(lease, first, last)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_peer_reads_what_was_lent_and_parts_of_it() -> None:
    pool = SharedPool(NUMEL, limit=3)
    leases = [pool.take() for _ in range(3)]
    for i, lease in enumerate(leases):
        assert lease is not None
        lease.tensor.copy_(torch.arange(NUMEL) + 10_000 * i)
    mapping, out, part = mapping_of(pool), torch.zeros(NUMEL), torch.zeros(7)
    for i, lease in enumerate(leases):
        assert lease is not None
        assert mapping.read(place(pool, lease), out)
        assert torch.equal(out, lease.tensor)
        assert mapping.read(place(pool, lease, 5, 12), part)
        assert part.tolist() == [10_000 * i + n for n in range(5, 12)]


def test_what_was_taken_for_something_new_is_not_read() -> None:
    pool = SharedPool(NUMEL, limit=1)
    lease = pool.take()
    assert lease is not None
    old = place(pool, lease)
    mapping, out = mapping_of(pool), torch.zeros(NUMEL)
    assert mapping.read(old, out)
    del lease
    assert mapping.read(old, out), "given back is not yet overwritten"
    again = pool.take()
    assert again is not None
    assert not mapping.read(old, out)
    assert mapping.read(place(pool, again), out)


def test_what_is_overwritten_while_it_is_copied_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SharedPool(NUMEL, limit=1)
    lease = pool.take()
    assert lease is not None
    old, mapping = place(pool, lease), mapping_of(pool)
    del lease
    copy, kept = __import__("numpy").copyto, []

    def copy_and_be_overtaken(to: object, source: object) -> None:
        copy(to, source)
        kept.append(pool.take())

    monkeypatch.setattr("outlast.wire.shared_memory.np.copyto", copy_and_be_overtaken)
    assert not mapping.read(old, torch.zeros(NUMEL))


def test_a_mapping_outlives_the_pool() -> None:
    pool = SharedPool(NUMEL, limit=2)
    lease = pool.take()
    assert lease is not None
    lease.tensor.fill_(7.0)
    where, mapping, out = place(pool, lease), mapping_of(pool), torch.zeros(NUMEL)
    del lease, pool
    assert mapping.read(where, out)
    assert out.eq(7.0).all()


def test_a_peer_cannot_write() -> None:
    pool = SharedPool(NUMEL, limit=1)
    with pytest.raises(PermissionError):
        os.pwrite(pool.fd, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(pool.fd, 4096)


def test_a_large_copy_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outlast.wire.shared_memory._PIECE", 1000)
    pool, out, told = SharedPool(NUMEL + 1, limit=1), torch.zeros(NUMEL + 1), []
    lease = pool.take()
    assert lease is not None
    lease.tensor.copy_(torch.arange(NUMEL + 1))
    where = place(pool, lease, 0, NUMEL + 1)
    assert mapping_of(pool).read(where, out, lambda: told.append(1))
    assert torch.equal(out, lease.tensor)
    assert len(told) == 4
    del lease
    assert not mapping_of(pool).read(where, out, lambda: told.append(pool.take()))  # overwritten after a piece


def test_memory_is_taken_from_readers_in_place_first_then_from_the_slowest() -> None:
    class Line:
        closed = False

        def close(self) -> None:
            self.closed = True

    readers, lines = Readers(), [Line() for _ in range(4)]
    for line in lines:
        readers.begins(line, object())
    readers.reads_in_place(lines[2])
    readers.reads_in_place(lines[3])
    readers.ends(lines[1])
    assert [readers.leave_without() for _ in range(4)] == ["in place", "in place", "closed", None]
    assert [line.closed for line in lines] == [True, False, False, False]
    readers.reads_in_place(lines[0])
    readers.ends(lines[0])
    assert len(readers) == 0


def test_memory_of_another_pool_has_no_place() -> None:
    one, other = SharedPool(NUMEL, limit=1), SharedPool(NUMEL, limit=1)
    lease = one.take()
    assert lease is not None
    assert other.place(lease, 0, NUMEL) is None


@pytest.mark.parametrize(
    "wrong",
    [Place(2, 0, NUMEL * 4, 1), Place(0, 4096 * 4, NUMEL * 4, 1), Place(0, 0, NUMEL * 4 - 4, 1), Place(2**40, 0, 0, 0)],
    ids=["no such vector", "beyond the vector", "another size", "far away"],
)
def test_places_outside_are_refused(wrong: Place) -> None:
    pool = SharedPool(NUMEL, limit=2)
    with pytest.raises(ProtocolError, match="outside"):
        mapping_of(pool).read(wrong, torch.zeros(NUMEL))


@pytest.mark.parametrize("raw", [None, [], [0, 0, 0], [0, 0, -4, 1], [0, 0.0, 4, 1], [True, 0, 4, 1], "0,0,4,1"])
def test_places_that_are_none_are_refused(raw: object) -> None:
    with pytest.raises(ProtocolError, match="vector, first, length, generation"):
        Place.from_json(raw)


def unsealed() -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    return fd


def sealed(content: bytes, size: int = 8192) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unsealed, "not sealed"),
        (lambda: os.open("/dev/null", os.O_RDONLY), "not a shared memory segment of Outlast"),
        (lambda: sealed(b"", 0), "not a shared memory segment of Outlast"),
        (lambda: sealed(b"", 8), "its description alone"),
        (lambda: sealed(b"garbage!" * 4), "describes itself"),
        (lambda: sealed((0x544E454D47455331).to_bytes(8, "little") + b"\xff" * 16), "describes itself"),
    ],
    ids=["unsealed", "a device", "empty", "tiny", "garbage", "too many vectors"],
)
def test_descriptors_that_are_no_segment_are_refused_and_closed(make: object, message: str) -> None:
    fd = make()  # type: ignore[operator]
    with pytest.raises(ProtocolError, match=message):
        Mapping(fd)
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    one, other = (Connection(sock, "uid") for sock in socket.socketpair(socket.AF_UNIX))
    yield one, other
    one.close()
    other.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_descriptor_comes_with_the_first_frame_alone(pair: tuple[Connection, Connection]) -> None:
    pool = SharedPool(NUMEL, limit=2)
    writer, reader = Sharing(pair[0], True), Sharing(pair[1], True)
    out = torch.zeros(NUMEL)
    for value in (1.0, 2.0, 3.0):
        lease = pool.take()
        assert lease is not None
        lease.tensor.fill_(value)
        writer.send(Header(Op.PUSH), {"n": value}, pool, lease)
        header, meta = pair[1].receive()
        assert header.length == 0
        assert meta["n"] == value
        assert reader.read(Place.from_json(meta["shared"]), out)
        assert out.eq(value).all()
    assert pair[0].bytes_sent < 1000


def test_without_agreement_the_payload_itself_is_sent(pair: tuple[Connection, Connection]) -> None:
    pool = SharedPool(NUMEL, limit=1)
    lease = pool.take()
    assert lease is not None
    lease.tensor.fill_(4.0)
    Sharing(pair[0], False).send(Header(Op.PUSH), None, pool, lease, (0, 10))
    header, _ = pair[1].receive()
    assert header.length == 40
    out = torch.zeros(10)
    pair[1].receive_into(memoryview(out.numpy()).cast("B"))
    assert out.eq(4.0).all()
    assert pair[1].bytes_received == pair[0].bytes_sent


def test_a_frame_that_shares_needs_a_descriptor_first(pair: tuple[Connection, Connection]) -> None:
    pair[0].send(Header(Op.PUSH), {"shared": [0, 0, 4, 1]})
    _, meta = pair[1].receive()
    with pytest.raises(ProtocolError, match="no descriptor"):
        Sharing(pair[1], True).read(Place.from_json(meta["shared"]), torch.zeros(1))


def test_descriptors_that_nobody_asked_for_are_closed(pair: tuple[Connection, Connection]) -> None:
    before = descriptors()
    for _ in range(5):
        fd = os.memfd_create("test")
        pair[0].send(Header(Op.PROBE), descriptor=fd)
        os.close(fd)
        pair[1].receive()
    header = Header(Op.PROBE, job=pair[0]._job).pack()
    fds = [os.memfd_create("test") for _ in range(9)]
    socket.send_fds(pair[0].sock, [header], fds)
    for fd in fds:
        os.close(fd)
    pair[1].receive()
    assert descriptors() == before + 1, "the last one waits to be taken"
    pair[1].close()
    assert descriptors() <= before - 1, "and the connection's own is closed with it"
