"""`Runtime` over Kubernetes: one job's observer and executor, and its status with compare-and-swap.

The recorded status is what the TrainingJob carries; it is read from the cache together with its resource version, and
written by replacing the status subresource at exactly that version. What the API server answers is the newest state
and goes into the cache, so that the next turn need not wait for the watch.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from outlast.api.spec import API_VERSION, KIND
from outlast_operator.kubernetes import clock
from outlast_operator.kubernetes.acceptance import Acceptance
from outlast_operator.kubernetes.api import JOBS, PLURAL, Api, ApiError
from outlast_operator.kubernetes.cache import Cache
from outlast_operator.kubernetes.events import Events
from outlast_operator.kubernetes.executor import Executor
from outlast_operator.kubernetes.observer import Observer, Secrets, Sight
from outlast_operator.kubernetes.pools import Pools
from outlast_operator.kubernetes.record import Record, read_record
from outlast_operator.kubernetes.status import to_status
from outlast_operator.manifests.names import JobRef
from outlast_operator.manifests.pods import Images
from outlast_operator.runtime import Conflict
from outlast_operator.state import Action, JobStatus, ObservedJob

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
WAITS_S = 5.0  # that a pod waits for a node or its image for a moment is no news
QUIET_S = 0.002  # events that come together are answered by one turn


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
    t_resumed: Callable[[], float] = lambda: -math.inf  # when this process was last held up, see clock.Pulse

    def check_lead(self) -> None:
        """Raises `Deposed`."""
        if not self.may_act():
            raise Deposed("the Lease was not renewed in time: another operator may lead")


class KubernetesRuntime:
    """One job. `observe`, `write_status`, `execute` and `wait` belong to its loop; `wake` to anybody."""

    def __init__(
        self, tools: Tools, ref: JobRef, acceptance: Acceptance, secrets: Secrets, events: Events, pools: Pools
    ) -> None:
        """`pools`: the job's shares."""
        assert acceptance.spec is not None, "only a job with a spec in force has a runtime"
        self._tools, self._ref = tools, ref
        self.acceptance = acceptance
        self.events = events
        self.t_operator_start = tools.now()
        self.conflicts = 0  # writes in a row that somebody else's came before
        self._woken = threading.Event()
        self._observer = Observer(tools.cache, ref, acceptance.spec, secrets, self.wake, tools.now)
        self._executor = Executor(tools.api, tools.cache, ref, tools.images, self._observer, events, pools, tools.now)
        self._sight: Sight | None = None
        self._observed: ObservedJob | None = None
        self._job: Json = {}
        self._record: Record | None = None
        self._recorded: tuple[str, Record] | None = None  # resource version -> what it holds: read once
        self._waits: dict[str, float] = {}  # why pods wait -> since when; inf once that was told

    # --- waking ---

    def wake(self) -> None:
        self._woken.set()

    def wait(self, until: float) -> None:
        """Sleep until something happens, or `until`. A gap in which we could not listen counts as a fresh start."""
        self._woken.wait(max(0.0, until - self._tools.now()))
        if self._woken.is_set():
            time.sleep(QUIET_S)
        self._woken.clear()
        now = self._tools.now()
        if now > until + self._observer.spec.recovery.failover.heartbeat_seconds:
            self.t_operator_start = now  # this process was held up: silence meanwhile proves nothing

    def take(self, acceptance: Acceptance) -> None:
        """Another generation of the spec is in force."""
        assert acceptance.spec is not None
        self.acceptance = acceptance
        self._observer.spec = acceptance.spec

    # --- the interface ---

    def observe(self) -> ObservedJob:
        """Raises `JobGone`, `UnreadableRecord`."""
        self._job = self._current()
        self._record = self._read(self._job)
        self.t_operator_start = max(self.t_operator_start, self._tools.t_resumed())  # also in the middle of a request
        if self._sight is None:
            self._observer.recall_refusals(self._record.status.attempts)
        sight = self._observer.look(ended=self._record.status.outcome is not None)
        self._sight = sight
        self._tell_who_waits(sight)
        self._observed = ObservedJob(
            status=self._record.status,
            processes=sight.processes,
            probes=sight.probes,
            redis=sight.redis,
            dead=sight.dead,
            t_operator_start=self.t_operator_start,
            generation=int(self._job["metadata"].get("generation") or 0),
        )
        return self._observed

    @property
    def observed(self) -> ObservedJob:
        """As `observe` last answered."""
        assert self._observed is not None, "there was a turn"
        return self._observed

    def write_status(self, status: JobStatus, expected_version: str | None) -> str:
        self._tools.check_lead()
        assert self._record is not None
        assert self._sight is not None
        assert expected_version == self._job["metadata"]["resourceVersion"], "a status is written after its observation"
        record = Record(status, self.acceptance.spec)  # of what may not change it has the accepted values
        shown = to_status(record, self._ref, self.acceptance, self._job, self._sight.active_workers())
        try:
            version = self._replace(shown)
        except Conflict:
            self.conflicts += 1
            raise
        self.conflicts = 0
        self._record = replace(record, status=replace(status, resource_version=version))  # what is done now follows it
        self._recorded = (version, self._record)
        return version

    def execute(self, action: Action) -> None:
        self._tools.check_lead()
        assert self._sight is not None
        assert self._record is not None
        try:
            self._executor.execute(action, self._sight, self._record.status.outcome is not None)
        except ApiError as error:
            log.warning("%s/%s: %s: %s", self._ref.namespace, self._ref.name, type(action).__name__, error)

    def after_turn(self, status: JobStatus) -> None:
        """What is neither decided nor urgent: labels, and the pods of a job that has ended."""
        assert self._sight is not None
        if status.outcome is None:
            self._executor.label_chains(status.views, self._sight)
        elif not any(p.alive for p in self._sight.processes.values()):
            self._executor.clean_up(self._sight)

    def show_refusal(self) -> None:
        """Write the status as it is, for the sake of the condition that tells of a refused change."""
        observed = self.observe()
        self.write_status(observed.status, observed.status.resource_version)

    def dismiss(self, uids: Collection[str]) -> None:
        """The job is gone: the servers in these pods need not wait for successors."""
        if self._sight is not None:
            self._executor.dismiss(uids, self._sight)

    def close(self) -> None:
        self._observer.close()

    # --- the recorded status ---

    def _current(self) -> Json:
        job = self._tools.cache.job(self._ref.namespace, self._ref.name)
        if job is None or job["metadata"]["uid"] != self._ref.uid or job["metadata"].get("deletionTimestamp"):
            raise JobGone(self._ref.name)
        return job

    def _read(self, job: Json) -> Record:
        version = str(job["metadata"]["resourceVersion"])
        if self._recorded is None or self._recorded[0] != version:
            self._recorded = (version, read_record(job))
        return self._recorded[1]

    def _replace(self, status: Json) -> str:
        job = replace_status(self._tools.api, self._tools.cache, self._job, status)
        return str(job["metadata"]["resourceVersion"])

    # --- why nothing happens ---

    def _tell_who_waits(self, sight: Sight) -> None:
        """One event for all pods that wait for the same, once they have for a while."""
        groups: dict[str, list[str]] = {}
        for view in sight.newest.values():
            if view.waits and view.alive:
                groups.setdefault(view.waits, []).append(view.name)
        now = self._tools.now()
        self._waits = {why: self._waits.get(why, now) for why in groups}
        for why, names in groups.items():
            if now - self._waits[why] >= WAITS_S:
                self._waits[why] = math.inf  # told
                self.events.tell("Warning", "PodWaits", f"{', '.join(sorted(names))}: {why}")


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
