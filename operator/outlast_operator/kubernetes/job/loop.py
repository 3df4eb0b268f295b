"""One loop a job: a thread that observes, plans, records and acts, until the job is deleted.

Rules. (1) Level-based: it may end between any two lines, and another one goes on from what is recorded. (2) It sleeps
until something happens, until the plan wants to be woken, or (while anything runs) for a heartbeat. (3) Whatever goes
wrong here is logged and tried again, ever more slowly (at once, if something happens); it never ends the loop. (4) A
job whose record cannot be read is left as it is, and an event says so: to act without it is to begin from nothing.
"""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import replace
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import CORE, JOBS, PLURAL, ApiError
from outlast_operator.kubernetes.job.acceptance import Acceptance, accept
from outlast_operator.kubernetes.job.events import Events
from outlast_operator.kubernetes.job.record import UnreadableRecord, out_of_force, read_record
from outlast_operator.kubernetes.job.runtime import (
    Deposed,
    JobGone,
    KubernetesRuntime,
    Tools,
    current,
    replace_status,
)
from outlast_operator.kubernetes.job.status import INVALID, REFUSED, invalid_status, shown_refusal
from outlast_operator.kubernetes.manifests.names import JobRef, is_owned
from outlast_operator.planner.observed import ObservedJob
from outlast_operator.runtime.reconcile import Conflict, Waker, is_over, run_turn

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
UNREADABLE = "RecordUnreadable"
HURRY_S = 1  # grace of pods whose job is gone: nothing of it is kept
IDLE_S = 10.0  # between two looks at a job in which nothing speaks
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 10.0
RUNNING_RETRY_S = 1.0  # the longest, of a job that runs: nobody wakes us when the API server is back
LONGEST_SLEEP_S = 3600.0
UNREADABLE_S = 300.0  # between two words about a record that cannot be read
CONFLICTS_AT_ONCE = 3


class JobLoop:
    """`start` once; `wake` whenever something about the job has changed; `stop` leaves the job as it is, unless it is
    `gone`: then its pods are hurried."""

    def __init__(self, tools: Tools, job: Json) -> None:
        meta = job["metadata"]
        self.ref = JobRef(meta["name"], meta["namespace"], meta["uid"], meta.get("labels") or {})
        # A loop that was stopped acts no more, also when its operator leads again, with another loop for this job.
        self._tools = replace(tools, may_act=lambda: not self._stopped.is_set() and tools.may_act())
        self._pools = tools.pools.for_one_job()
        self._events = Events(tools.api, self.ref, self._pools.api, tools.now)
        self._runtime: KubernetesRuntime | None = None
        self._generation: int | None = None
        self._waker = Waker(tools.now)
        self._stopped = threading.Event()
        self._gone = False
        self._reason = ""
        self._unreadable: tuple[str, float] | None = None  # what was told of the record, and when
        self.failing = 0  # turns in a row that ended in an error
        self._thread = threading.Thread(target=self._run, name=f"job-{self.ref.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        self._waker.wake()

    def stop(self, gone: bool = False) -> None:
        self._gone = self._gone or gone
        self._stopped.set()
        self.wake()

    # --- the loop ---

    def _run(self) -> None:
        where = f"{self.ref.namespace}/{self.ref.name}"
        try:
            self._turns(where)
        except JobGone:
            self._gone = True
        finally:
            if self._gone:
                log.info("%s is gone", where)
                self._hurry_its_pods()
            if self._runtime is not None:
                self._runtime.close()

    def _turns(self, where: str) -> None:
        """Until we are stopped. Raises `JobGone`."""
        while not self._stopped.is_set():
            try:
                self._sleep(self._turn())
                self.failing = 0
            except Conflict as conflict:
                log.info("%s", conflict)
            except (ApiError, Deposed) as error:
                self._failed(where, str(error), trace=False)
            except UnreadableRecord as error:
                self._tell_unreadable(str(error))
            except JobGone:
                raise
            except Exception as error:
                self._failed(where, repr(error), trace=True)

    def _hurry_its_pods(self) -> None:
        """The garbage collector ends the pods of a deleted job, and each server would wait for a view without it.

        The API server shortens a grace period that has begun; a server that is told ends without waiting for its end.
        """
        api, unwanted = self._tools.api, []
        for pod in self._tools.cache.pods(self.ref.id)[0].values():
            meta = pod["metadata"]
            try:
                if self._is_kept(api.get(CORE, meta["namespace"], "pods", meta["name"])):
                    continue
                unwanted.append(meta["uid"])
                api.delete(CORE, meta["namespace"], "pods", meta["name"], meta["uid"], HURRY_S)
            except ApiError as error:
                log.debug("%s: %s", meta["name"], error)
        if self._runtime is not None:
            self._runtime.dismiss(unwanted)

    def _is_kept(self, pod: Json) -> bool:
        """Whether who deletes the job wants to keep its pods: they are orphaned, or will be."""
        job = self._tools.cache.job(self.ref.namespace, self.ref.name)
        ours = job is not None and job["metadata"]["uid"] == self.ref.uid
        orphans = ours and job is not None and "orphan" in (job["metadata"].get("finalizers") or ())
        return orphans or not is_owned(pod, self.ref)

    def _failed(self, where: str, what: str, trace: bool) -> None:
        self.failing += 1
        log.warning("%s: %s (retrying)", where, what, exc_info=trace)
        longest_s = LONGEST_RETRY_S if self._runtime is None else RUNNING_RETRY_S
        self._stopped.wait(FIRST_RETRY_S)  # whatever wakes us: an API server that is ill is not asked without a pause
        self._sleep(self._tools.now() + min(FIRST_RETRY_S * 2 ** min(self.failing, 10), longest_s) - FIRST_RETRY_S)

    def _tell_unreadable(self, message: str) -> None:
        """Now and then; a change of the job, as a newer operator's would be, wakes us before."""
        self.failing += 1
        now = self._tools.now()
        if self._unreadable is None or self._unreadable[0] != message or now >= self._unreadable[1] + UNREADABLE_S:
            self._unreadable = (message, now)
            self._events.tell("Warning", UNREADABLE, message)
        self._stopped.wait(FIRST_RETRY_S)
        self._sleep(now + UNREADABLE_S)

    def _give_way(self, conflicts: int) -> None:
        """Retry one conflict at once. Repeated conflicts mean another writer: back off with jitter."""
        if conflicts > CONFLICTS_AT_ONCE:
            longest_s = min(FIRST_RETRY_S * 2 ** min(conflicts - CONFLICTS_AT_ONCE, 10), RUNNING_RETRY_S)
            self._stopped.wait(longest_s * random.uniform(0.5, 1.0))

    def _sleep(self, until: float | None) -> None:
        """`until` None: do not sleep."""
        if until is not None and not self._stopped.is_set():
            self._waker.wait(until)

    def _turn(self) -> float | None:
        """One turn; returns until when to sleep. Raises `JobGone`, `Conflict`, `Deposed`, `ApiError` and
        `UnreadableRecord`."""
        self._tools.check_lead()
        job, runtime = current(self._tools.cache, self.ref), self._runtime
        if job["metadata"].get("generation") != self._generation or runtime is None:
            runtime = self._take(job)
            if runtime is None:
                return self._tools.now() + LONGEST_SLEEP_S  # until its spec is mended
            self._generation = job["metadata"].get("generation")
        return self._plan(runtime)

    def _plan(self, runtime: KubernetesRuntime) -> float | None:
        spec, now = runtime.spec, self._tools.now()
        observed, plan, changed = run_turn(runtime, spec, now)
        if plan.reason != self._reason:
            log.info("%s/%s: %s", self.ref.namespace, self.ref.name, plan.reason)
            self._reason = plan.reason
        if changed:
            self._give_way(runtime.conflicts)
            return None
        runtime.after_turn(observed, plan.status)
        running = any(p.alive for p in observed.processes.values())
        look_again = now + (spec.recovery.failover.heartbeat_seconds if running else IDLE_S)
        if plan.wake_at is not None:
            look_again = min(look_again, plan.wake_at)
        if observed.status.outcome is None:
            return look_again
        finished = self._finished(spec, observed.status.t_completed or now)  # what still runs, or is kept by its policy
        kept = spec.run_policy.clean_pod_policy == "None" and not _is_to_leave(observed)
        return finished if kept or is_over(observed) else min(look_again, finished)

    def _finished(self, spec: JobSpec, t_completed: float) -> float:
        ttl_s, now = spec.run_policy.ttl_seconds_after_finished, self._tools.now()
        if ttl_s is None:
            return now + LONGEST_SLEEP_S
        if now < t_completed + ttl_s:
            return min(t_completed + ttl_s, now + LONGEST_SLEEP_S)
        log.info("%s/%s is deleted: ttlSecondsAfterFinished", self.ref.namespace, self.ref.name)
        try:
            self._tools.api.delete(
                JOBS, self.ref.namespace, PLURAL, self.ref.name, self.ref.uid, propagation="Background"
            )
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return now + IDLE_S

    # --- which spec, and what it needs ---

    def _take(self, job: Json) -> KubernetesRuntime | None:
        """Put the spec in force. None: there is none."""
        record = read_record(job)
        acceptance = accept(job, record.spec, self._tools.account)
        if acceptance.spec is None:
            if (job.get("status") or {}).get("record"):
                raise out_of_force(job, acceptance.message)
            self._show_invalid(job, acceptance)
            return None
        runtime = self._runtime
        first = runtime is None and record.spec is None
        if runtime is None:
            for warning in acceptance.warnings if record.status.t_start is None else ():
                self._events.tell("Warning", "SpecWarning", warning)
            runtime = KubernetesRuntime(self._tools, self.ref, acceptance, self._events, self._pools, self._waker)
            self._runtime = runtime
        else:
            runtime.take(acceptance)
        if acceptance.message != shown_refusal(job) and not first:
            if acceptance.refused:
                self._events.tell("Warning", REFUSED, acceptance.message)
            runtime.show_refusal()
        return runtime

    def _show_invalid(self, job: Json, acceptance: Acceptance) -> None:
        status = invalid_status(job, acceptance.message, self._tools.now())
        if (job.get("status") or {}) == status:
            return
        replace_status(self._tools.api, self._tools.cache, job, status)
        self._events.tell("Warning", INVALID, acceptance.message)


def _is_to_leave(observed: ObservedJob) -> bool:
    """Whether a server lives that can be asked to leave; nobody else is ended where pods are to be kept."""
    return any(p.role == "server" and p.alive and p.boot is not None for p in observed.processes.values())


def managed_by_us(job: Json) -> bool:
    """Whether the job is for this controller (`spec.managedBy`)."""
    manager = (job.get("spec") or {}).get("managedBy")
    return manager in (None, "outlast.dev/operator")
