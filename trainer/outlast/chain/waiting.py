"""Who waits for an answer at the head: acknowledgements withheld until they are true, pulls until they may be shown.

Rules:
1. A push is answered once its entry is safe (`safe_seq`: the tail has it, or what a relaxed `ack` asks), a duplicate
   once its *original* is: "you have it" is a promise too.
2. SSP withholds a safe acknowledgement until no slot is more than maxStaleness steps behind it.
3. Sync shows nothing that is not safe, neither in pulls nor in the weights that go with an acknowledgement.
4. Every token is answered exactly once.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from outlast.chain.events import Acknowledged, Pull, Reply, Token, Weights
from outlast.chain.state import ReplicatedState


class Waiter(NamedTuple):
    """A token whose push is safe when `seq` is; ordered by it."""

    seq: int
    n: int  # arrival, to break ties
    token: Token
    clock: int | None  # SSP: the slowest slot must have come this far; None: not held back
    duplicate: bool


class Waiting:
    """Tokens in two heaps (by seq; then, with SSP, by clock) and a short list of pulls."""

    def __init__(self, *, sync: bool) -> None:
        self._sync = sync
        self._unsafe: list[Waiter] = []
        self._fast: list[tuple[int, int, Waiter]] = []  # safe, but ahead of the slowest slot: (clock, n, …)
        self._pulls: list[tuple[Pull, int | None]] = []  # with the clock that SSP demands of it
        self._counter = count()

    def __len__(self) -> int:
        return len(self._unsafe) + len(self._fast) + len(self._pulls)

    def push(self, token: Token, seq: int, clock: int | None = None, *, duplicate: bool = False) -> None:
        """Acknowledge `token` once `seq` is safe."""
        heappush(self._unsafe, Waiter(seq, next(self._counter), token, clock, duplicate))

    def pull(self, pull: Pull, clock: int | None = None) -> None:
        """Answer with weights once they may be shown."""
        self._pulls.append((pull, clock))

    def release(self, safe_seq: int, state: ReplicatedState, slowest: int | None, out: list[Reply]) -> None:
        """Answer all whose time has come. `slowest`: the SSP clock, None when nobody is held back."""
        unsafe = self._unsafe
        shown_seq = state.version_seq if self._sync else 0  # the weights that an acknowledgement carries
        while unsafe and unsafe[0].seq <= safe_seq:
            waiter = heappop(unsafe)
            if shown_seq > safe_seq:
                heappush(unsafe, waiter._replace(seq=shown_seq))
            elif waiter.clock is None or slowest is None or waiter.clock <= slowest:
                out.append(Acknowledged(waiter.token, state.version, state.data, waiter.duplicate))
            else:
                heappush(self._fast, (waiter.clock, waiter.n, waiter))
        while self._fast and (slowest is None or self._fast[0][0] <= slowest):
            waiter = heappop(self._fast)[2]
            out.append(Acknowledged(waiter.token, state.version, state.data, waiter.duplicate))
        if self._pulls:
            waiting, self._pulls = self._pulls, []
            for pull, clock in waiting:
                if clock is not None and slowest is not None and clock > slowest:
                    self._pulls.append((pull, clock))
                elif not self._answer(pull, safe_seq, state, out):
                    self._pulls.append((pull, None))

    def _answer(self, pull: Pull, safe_seq: int, state: ReplicatedState, out: list[Reply]) -> bool:
        """Answer a pull now, if it can be."""
        wanted = state.version if pull.version is None else pull.version
        if not state.version - 1 <= wanted <= state.version or wanted < 0:
            return False  # admitted only when near; the replica refuses the rest
        made_by = state.version_seq if wanted == state.version else state.previous_seq
        if self._sync and made_by > safe_seq:
            return False
        out.append(Weights(pull.token, wanted, state.data))
        return True

    def tokens(self) -> list[Token]:
        """Everybody who waits, in order of arrival within each kind; nobody waits afterwards."""
        waiters = sorted([*self._unsafe, *(w for _, _, w in self._fast)], key=lambda w: w.n)
        everybody = [w.token for w in waiters] + [pull.token for pull, _ in self._pulls]
        self._unsafe, self._fast, self._pulls = [], [], []
        return everybody

    def overtaken(self, version: int) -> list[Token]:
        """Tokens of pulls whose exact version is gone (older than `version − 1`): the caller refuses them."""
        gone = [p.token for p, _ in self._pulls if p.version is not None and p.version < version - 1]
        if gone:
            self._pulls = [(p, c) for p, c in self._pulls if p.version is None or p.version >= version - 1]
        return gone
