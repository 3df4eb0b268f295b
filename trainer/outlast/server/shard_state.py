"""What a server holds of its shard: parameters, the memory for gradients, and the weights that readers take.

Empty until initial weights or a state come; the memory for gradients stays when the state goes.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from outlast.api.spec import JobSpec
from outlast.chain.events import Entry, Kind
from outlast.chain.replica import Replica
from outlast.chain.staleness import inverse, usual_staleness
from outlast.process.exit_codes import EXIT_FAILED
from outlast.server.parameters import Parameters, Snapshot, parameters_for
from outlast.server.readers import Readers
from outlast.wire.payloads import InitialState, Payload
from outlast.wire.pool import TensorPool
from outlast.wire.shared_memory import make_pool

log = logging.getLogger("outlast.server")

_SPARE_READERS = 8  # snapshots beyond one a worker: evaluator, joining workers
_COMPARE_EVERY = 500  # entries between two comparisons of replicas
_POOL_BYTES = 1 << 30  # gradients in flight and in the chain's log; at least a few whatever their size


class ShardState:
    """The server's lock guards it. `shared`: workers and successors on this host read its memory in place."""

    def __init__(self, spec: JobSpec, shared: bool) -> None:
        self._spec, self._shared = spec, shared
        self.parameters: Parameters | None = None
        self.pool: TensorPool | None = None  # of gradients
        self.readers = Readers()
        self._initial: dict[str, Any] = {}  # the model: manifest, optimizer, range
        self._pull_copies: dict[int, Snapshot] = {}  # slot -> the weights that it was given (DelayCompensation)

    @property
    def _held(self) -> Parameters:
        if self.parameters is None:
            raise RuntimeError("this server holds no state")
        return self.parameters

    def payload_limit(self) -> int:
        """Bytes of the largest payload that a worker may send."""
        parameters = self.parameters  # the lock is not held
        if parameters is None:
            return 16 << 30
        states = 2 if self._spec.training.optimizer.name == "SGD" else 3
        return parameters.numel * 4 * states + 4096

    def clear(self) -> None:
        self.parameters = None

    # --- entries ---

    def apply(self, entry: Entry, replica: Replica) -> None:
        """Combine what the entry is made of into its payload, and apply it."""
        if entry.parts:
            entry.payload = self._combine(entry, replica.data.slots)
            entry.parts = ()  # the other gradients' memory goes back to its pool
        if entry.kind is Kind.INIT:
            self._initialise(entry.payload)
        elif entry.kind is Kind.UPDATE:
            self._held.update(entry.payload.tensor, entry.rate, entry.version)
        elif entry.kind is Kind.DELTA:
            self._held.add(entry.payload.tensor, entry.version)
        if entry.kind is not Kind.INIT and self.parameters is not None:
            self._compare(entry, self.parameters, leads=replica.role == "head")

    def _initialise(self, state: InitialState) -> None:
        self._allocate(state.meta).initialise(state.tensor)

    def _combine(self, entry: Entry, slots: int) -> InitialState | Payload:
        first: InitialState | Payload = entry.parts[0].payload
        if entry.kind is Kind.INIT:
            return first
        if len(entry.parts) == 1 and entry.parts[0].weight == 1.0 and entry.parts[0].compensate_from is None:
            return first
        parts = []
        for part in entry.parts:
            weight, then = part.weight, None
            if part.compensate_from is not None:
                copy = self._pull_copies.get(part.identity.slot)
                if copy is not None and copy.version == part.compensate_from:
                    then = copy.tensor
                else:  # no pull copy (a failover, or buffered): InverseStaleness instead
                    weight *= inverse(self._held.version, 0, part.compensate_from, usual_staleness(slots))
            parts.append((part.payload.tensor, weight, then))
        self._held.combine(first.tensor, parts)
        return first

    def _compare(self, entry: Entry, parameters: Parameters, leads: bool) -> None:
        """Now and then the head sends a checksum along; a replica that differs must never become head."""
        if leads:
            entry.checksum = parameters.checksum() if entry.seq % _COMPARE_EVERY == 0 else None
        elif entry.checksum is not None and entry.checksum != parameters.checksum():
            log.critical(
                "parameters differ from the head's after entry %d (version %d): this replica ends, and a fresh one "
                "joins in its place; look for faulty memory or another torch release", entry.seq, entry.version
            )  # fmt: skip
            os._exit(EXIT_FAILED)

    # --- the whole state ---

    def export(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return self._initial, self._held.state_tensors()

    def load(self, initial: dict[str, Any], tensors: dict[str, torch.Tensor], version: int) -> None:
        parameters = self.parameters
        if parameters is None or self._initial != initial:
            parameters = self._allocate(initial)
        parameters.load_state(tensors, version)

    def _allocate(self, initial: dict[str, Any]) -> Parameters:
        """Memory for the model that `initial` describes."""
        self._initial, spec = initial, self._spec
        keep = spec.traits.barrier and spec.servers.shards > 1
        self.parameters = parameters_for(initial, keep, spec.workers.replicas + _SPARE_READERS, self._shared)
        numel = self.parameters.numel
        if self.pool is None or self.pool.numel != numel:
            least = 2 * spec.workers.replicas + 4
            self.pool = make_pool(numel, max(least, _POOL_BYTES // (numel * 4)), self._shared)
        return self.parameters

    # --- weights ---

    def weights(self, version: int | None, slot: int | None) -> Snapshot | None:
        """Of `version` (None: the newest), for this slot's worker; None: that version is gone."""
        snapshot = self._snapshot(version)
        if self._spec.recovery.staleness.policy == "DelayCompensation" and slot is not None and snapshot is not None:
            self._pull_copies[slot] = snapshot
        return snapshot

    def _snapshot(self, version: int | None) -> Snapshot | None:
        parameters = self._held
        while (snapshot := parameters.snapshot(version)) is None and version in (None, parameters.version):
            if not self._take_memory_back():
                return None
        return snapshot

    def _take_memory_back(self) -> bool:
        """All snapshots are lent. False: nothing holds any."""
        lender = self.readers.leave_without()
        if lender == "closed":
            log.warning("all snapshots are lent; dropped the slowest reader")
        if lender is None and self._pull_copies:
            # DelayCompensation with many slots: the oldest copy's gradient is weighted instead (InverseStaleness).
            self._pull_copies.pop(min(self._pull_copies, key=lambda slot: self._pull_copies[slot].version))
            return True
        return lender is not None
