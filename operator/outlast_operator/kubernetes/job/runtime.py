"""`Runtime` over Kubernetes: one job's observer and executor, and its status with compare-and-swap.

The recorded status is what the TrainingJob carries; it is read from the cache together with its resource version, and
written by replacing the status subresource at exactly that version. What the API server answers is the newest state
and goes into the cache, so that the next turn need not wait for the watch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from outlast.api.job import API_VERSION, KIND
from outlast_operator.kubernetes.cluster import clock
from outlast_operator.kubernetes.cluster.api import JOBS, PLURAL, Api, ApiError
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.acceptance import Acceptance, Account
from outlast_operator.kubernetes.job.budgets import Budgets
from outlast_operator.kubernetes.job.dependents import Dependents
from outlast_operator.kubernetes.job.events import Events
from outlast_operator.kubernetes.job.executor import Executor
from outlast_operator.kubernetes.job.network import Policies
from outlast_operator.kubernetes.job.observer import Observer, Sight
from outlast_operator.kubernetes.job.pod_events import PodEvents
from outlast_operator.kubernetes.job.record import Record, read_record
from outlast_operator.kubernetes.job.status import to_status
from outlast_operator.kubernetes.job.storage import CheckpointStorage
from outlast_operator.kubernetes.manifests.names import JobRef
from outlast_operator.kubernetes.manifests.network import Peers
from outlast_operator.kubernetes.manifests.pods import Images
from outlast_operator.planner.actions import Action, ExpandClaims, StartProcess
from outlast_operator.planner.checkpoints import Storage
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.planner.status import JobStatus
from outlast_operator.runtime.reconcile import Conflict, Waker

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]


class JobGone(Exception):
    """The TrainingJob was deleted, or another one has its name."""


class Deposed(Exception):
    """Another operator may lead by now: nothing is written or done any more."""


@dataclass(frozen=True)
class Tools:
    """What all jobs of an operator share."""

    api: Api
    cache: Cache
    images: Images
    pools: Pools
    now: Callable[[], float] = clock.now
    may_act: Callable[[], bool] = lambda: True  # whether we lead for certain, at this moment
    peers: Peers | None = None  # None: we run in no pod
    t_resumed: Callable[[], float] = lambda: -math.inf  # when this process was last held up, see clock.Pulse
    account: Account | None = None  # our own ServiceAccount; None: we run in no pod

    def check_lead(self) -> None:
        """Raises `Deposed`."""
        if not self.may_act():
            raise Deposed("the Lease was not renewed in time; another operator may be leader")


class KubernetesRuntime:
    """One job. All of it belongs to the job's loop."""

    def __init__(
        self,
        tools: Tools,
        ref: JobRef,
        acceptance: Acceptance,
        events: Events,
        pools: Pools,
        waker: Waker,
    ) -> None:
        """`pools`: the job's shares. `waker`: the loop's; it has nobody to listen to before."""
        assert acceptance.spec is not None, "only a job with a spec in force has a runtime"
        self._tools, self._ref = tools, ref
        self.conflicts = 0  # writes in a row that met a newer one
        self._waker = waker
        self._waker.listen_anew()
        self._storage = CheckpointStorage(tools.api, ref, tools.now)
        self._dependents = Dependents(tools.api, ref, tools.now)
        self._observer = Observer(tools.cache, ref, acceptance.spec, waker.wake, tools.now)
        self._executor = Executor(tools.api, tools.cache, ref, tools.images, self._observer, events, pools, tools.now)
        self._pod_events = PodEvents(tools.api, ref.namespace, pools.api, tools.now, waker.wake)
        self._policies = Policies(tools.api, ref, tools.peers, pools.api, tools.now)
        self._budgets = Budgets(tools.api, ref, pools.api, tools.now)
        # As `observe` saw them last; the record as it was written since.
        self._sight = Sight()
        self._job: Json = {}
        self._record = Record(JobStatus())
        self.take(acceptance)

    def take(self, acceptance: Acceptance) -> None:
        """This generation of the spec is in force."""
        assert acceptance.spec is not None
        self.acceptance, self.spec = acceptance, acceptance.spec
        self._observer.spec = acceptance.spec
        self._executor.refusals.clear_all()
        self._waker.heartbeat_s = acceptance.spec.recovery.failover.heartbeat_seconds

    # --- the interface ---

    def observe(self) -> ObservedJob:
        """Raises `JobGone`, `UnreadableRecord`."""
        self._job = current(self._tools.cache, self._ref)
        if self._record.status.resource_version != str(self._job["metadata"]["resourceVersion"]):
            self._record = read_record(self._job)
        waker = self._waker
        waker.t_listening = max(waker.t_listening, self._tools.t_resumed())  # also in the middle of a request
        ended = self._record.status.outcome is not None
        self._tools.check_lead()
        storage = self._storage.choose(self.spec, self._record.status)
        self._ensure_dependents(storage, ended)
        self._observer.told = self._pod_events.told
        self._sight = sight = self._observer.look(ended)
        self._pod_events.follow(() if ended else sight.newest.values())
        return ObservedJob(
            status=self._record.status,
            processes=sight.processes,
            probes=sight.probes,
            redis=sight.redis,
            dead=sight.dead,
            storage=storage,
            claim_bytes=self._storage.claim_bytes(self.spec, storage),
            claim_refusal=self._storage.refusal,
            waits={**self._dependents.waits, **self._storage.waits, **sight.waits, **self._executor.refusals.waits},
            t_operator_start=waker.t_listening,
            generation=int(self._job["metadata"].get("generation") or 0),
        )

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        self._tools.check_lead()
        assert expected_version == self._job["metadata"]["resourceVersion"], "a status is written after its observation"
        record = Record(status, self.spec)  # of what may not change it has the accepted values
        shown = to_status(record, self._ref, self.acceptance, self._job)
        try:
            job = replace_status(self._tools.api, self._tools.cache, self._job, shown)
        except Conflict:
            self.conflicts += 1
            raise
        self.conflicts = 0
        version = str(job["metadata"]["resourceVersion"])
        self._record = replace(record, status=replace(status, resource_version=version))  # what is done now follows it
        return version

    def execute(self, action: Action) -> None:
        self._tools.check_lead()
        status = self._record.status
        try:
            if isinstance(action, ExpandClaims):
                self._storage.expand(self.spec, status, action.to_bytes)
            elif not isinstance(action, StartProcess) or self._has_its_claim(action):
                self._executor.execute(action, self._sight, status.outcome is not None)
        except ApiError as error:
            log.warning("%s/%s: %s: %s", self._ref.namespace, self._ref.name, type(action).__name__, error)

    def _has_its_claim(self, start: StartProcess) -> bool:
        """Whether the claim that a server mounts is there, and the job's own. If not, its start was refused."""
        claim = self._storage.claim_of(self.spec, start)
        if claim is None:
            return True
        try:
            self._dependents.ensure_claim(claim)
        except ApiError as error:
            name = claim["metadata"]["name"]
            log.info("%s/%s: claim %s: %s", self._ref.namespace, self._ref.name, name, error)
            self._executor.refusals.note(start.name, error, claim)
            self._waker.wake()  # to say so
            return False
        return True

    def after_turn(self, observed: ObservedJob, status: JobStatus) -> None:
        """What is neither decided nor urgent: policies, budgets, labels, and the pods of a job that has ended.

        `status`: of the plan that `observed` led to. It lists what of its waits is wanted still.
        """
        self._executor.refusals.drop(observed.waits.keys() - status.waits.keys())
        self._policies.keep(self.spec)
        self._budgets.keep(self.spec, ended=status.outcome is not None)
        if status.outcome is None:
            self._executor.label_chains(status.views, self._sight)
            self._storage.retire(status)
        elif not any(p.alive for p in self._sight.processes.values()):
            self._executor.clean_up(self._sight)

    def show_refusal(self) -> None:
        """Write the status as it is, for the sake of the condition that tells of a refused change."""
        observed = self.observe()
        self.write_status(observed.status, observed.status.resource_version)

    def dismiss(self, uids: Collection[str]) -> None:
        """The job is gone: the servers in these pods need not wait for successors."""
        self._executor.dismiss(uids, self._sight)

    def close(self) -> None:
        self._observer.close()

    def _ensure_dependents(self, storage: Storage | None, ended: bool) -> None:
        living = {name for name, p in self._sight.processes.items() if p.alive}
        claims = self._storage.claims(self.spec, self._record.status, storage, living)
        self._dependents.ensure(self.spec, claims, ended, self._sight.waits)
        self._observer.secrets = self._dependents.secrets
        if self._observer.secrets.token is None:
            self._waker.listen_anew()  # servers cannot be heard: their silence proves nothing


def current(cache: Cache, ref: JobRef) -> Json:
    """The TrainingJob as it stands. Raises `JobGone`."""
    job = cache.job(ref.namespace, ref.name)
    if job is None or job["metadata"]["uid"] != ref.uid or job["metadata"].get("deletionTimestamp"):
        raise JobGone(ref.name)
    return job


def replace_status(api: Api, cache: Cache, job: Json, status: Json) -> Json:
    """Compare-and-swap. Returns the job as recorded now; raises `Conflict`, `JobGone` or `ApiError`."""
    meta = job["metadata"]
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": job.get("spec"), "status": status}
    try:
        recorded = api.replace(JOBS, meta["namespace"], PLURAL, meta["name"], body, "status")
    except ApiError as error:
        if error.not_found:
            cache.remove_job(job)  # else each of its pods' events would begin a loop for it
            raise JobGone(meta["name"]) from error
        if error.conflict:
            _refresh(api, cache, job)
            raise Conflict(f"{meta['name']}: not at version {meta['resourceVersion']} any more") from error
        raise
    cache.put_job(recorded)
    return recorded


def _refresh(api: Api, cache: Cache, job: Json) -> None:
    """The watch may take a moment to tell what the conflict was about."""
    meta = job["metadata"]
    try:
        cache.put_job(api.get(JOBS, meta["namespace"], PLURAL, meta["name"]))
    except ApiError as error:
        if error.not_found:
            cache.remove_job(job)
            raise JobGone(meta["name"]) from error
        raise
