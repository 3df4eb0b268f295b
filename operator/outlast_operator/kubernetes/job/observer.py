"""What is known of a job now: pods from the cache, servers and Redis from watches of our own. Nothing is waited for.

Rules. (1) A watch belongs to one pod (its uid and address), so that what it hears is that pod's by construction; it
dials while that pod lives at that address, and never afterwards (invariant one-owner). (2) A pod whose object is gone
is proved dead by its container's termination, if the last state shows it, or by its peer's end of an established
connection after the deletion; a watch therefore outlives its pod until one of the two is known. (3)
The newest pod of a name is the process of that name; older ones are among the dead, or not spoken of. (4) When a pod
was first seen is taken from our own clock: another one's may be ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.job.dependents import Secrets
from outlast_operator.kubernetes.job.pods import (
    CLAIM_UNBOUND,
    PodView,
    Since,
    may_dial,
    parse_time,
    pull_trouble,
    read_pod,
)
from outlast_operator.kubernetes.manifests.names import REDIS_PORT, JobRef
from outlast_operator.kubernetes.manifests.pods import redis_url, template_digest
from outlast_operator.planner.backoff import LONG_LIFE_S
from outlast_operator.planner.observed import Probe, Process, RedisState
from outlast_operator.planner.status import Wait
from outlast_operator.runtime.watches import RedisWatch, ServerWatch

WAITS_S = 1.5  # that a pod waits for a node or its volumes for a moment is no news


@dataclass(frozen=True)
class Sight:
    """One look at a job's pods."""

    processes: dict[str, Process] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    redis: RedisState = field(default_factory=RedisState)
    dead: frozenset[str] = frozenset()
    pods: dict[str, PodView] = field(default_factory=dict)  # by uid, all that exist
    newest: dict[str, PodView] = field(default_factory=dict)  # by process name
    waits: dict[str, Wait] = field(default_factory=dict)  # by process name: pods that do not start

    def living(self, name: str) -> PodView | None:
        view = self.newest.get(name)
        return view if view is not None and view.alive else None


@dataclass
class _Known:
    """What we remember of a pod beside its object."""

    t_seen: float
    since: Since = field(default_factory=Since)
    t_ran: float | None = None  # its container was first seen running
    t_exited: float | None = None
    boot: str | None = None
    trouble: str = ""  # what a registry said of its image
    waits: tuple[str, float] | None = None  # the reason why it does not start, and since when
    told: Wait | None = None  # the wait that was told last
    t_restarted: float | None = None  # a restart of its container in place was last seen
    restarts: int = 0  # of its container, as far as counted
    short_lives: int = 0  # how often in a row it was restarted after a short life

    def count_restarts(self, view: PodView, now: float) -> None:
        if view.restarts > self.restarts:
            short = (view.lived_s or 0.0) < LONG_LIFE_S
            self.short_lives = self.short_lives + view.restarts - self.restarts if short else 0
            self.restarts, self.t_restarted = view.restarts, now
            self.t_ran = self.t_exited = None


class Observer:
    """Looks at one job. Used by its loop alone; watches call `wake` from their threads."""

    def __init__(
        self,
        cache: Cache,
        ref: JobRef,
        spec: JobSpec,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._cache, self._ref = cache, ref
        self.secrets = Secrets()
        self.told: Mapping[str, Wait] = {}  # pod uid -> what Events alone say of it
        self.wake, self._clock = wake, clock
        self._looked = False
        self._known: dict[str, _Known] = {}
        self._watches: dict[str, ServerWatch] = {}  # pod uid -> watch
        self._redis: tuple[str, RedisWatch] | None = None  # url, watch
        self._last_run: str | None = None  # of the Redis before
        self._dead: set[str] = set()
        self._last_probes: dict[str, Probe] = {}
        self.spec = spec

    def look(self, ended: bool = False) -> Sight:
        """`ended`: the job has its outcome, and needs no Redis any more."""
        now = self._clock()
        existing, gone = self._cache.pods(self._ref.id)
        pods = self._read(existing, now, False)
        past = self._read(gone, now, True)
        newest = self._newest([*pods.values(), *past.values()])
        self._keep_watches(pods, past, newest)
        self._note_dead(pods, past)
        processes = {name: self._process(view, now) for name, view in newest.items()}
        self._forget_all_but({*existing, *gone, *self._watches})
        shown = {p.instance for p in processes.values()}
        redis = self._redis_state(newest.get("redis"), ended)
        waits = {view.name: wait for view in newest.values() if (wait := self._wait(view, now)) is not None}
        self._looked = True
        return Sight(processes, self._probes(newest), redis, frozenset(self._dead - shown), pods, newest, waits)

    def _wait(self, view: PodView, now: float) -> Wait | None:
        """Why a pod does not start, once that has lasted for a moment. Until then a reason before it stands."""
        known = self._known[view.uid]
        wait = view.wait
        if wait is None or wait.reason == CLAIM_UNBOUND:  # every other word of its status is newer than Events
            wait = self.told.get(view.uid) or wait
        if wait is None or not view.alive or view.phase == "running":
            known.waits = known.told = None
            return None
        if known.waits is None or known.waits[0] != wait.reason:
            known.waits = (wait.reason, now if self._looked else known.t_seen)
        outdated = view.template not in ("", template_digest(self.spec, view.role))
        if now - known.waits[1] >= WAITS_S or outdated:
            known.told = wait
        return None if known.told is None else replace(known.told, outdated=outdated)

    def _forget_all_but(self, uids: set[str]) -> None:
        """Of the others the record says what must be known."""
        self._known = {uid: known for uid, known in self._known.items() if uid in uids}
        self._dead = {instance for instance in self._dead if instance.partition(".")[0] in uids}

    def watch_of(self, boot: str) -> ServerWatch | None:
        """The line to the server that has this boot id."""
        for uid, known in self._known.items():
            if known.boot == boot:
                return self._watches.get(uid)
        return None

    @property
    def redis_watch(self) -> RedisWatch | None:
        return None if self._redis is None else self._redis[1]

    def boot_of(self, uid: str) -> str | None:
        """The boot id that this pod's server has told."""
        known = self._known.get(uid)
        return None if known is None else known.boot

    def short_lives_of(self, uid: str) -> int:
        """How often in a row this pod's container was restarted in place after a short life."""
        known = self._known.get(uid)
        return 0 if known is None else known.short_lives

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        if self._redis is not None:
            self._redis[1].close()

    # --- pods ---

    def _read(self, objects: dict[str, Any], now: float, gone: bool) -> dict[str, PodView]:
        views = {}
        for uid, obj in objects.items():
            if uid not in self._known:
                created = parse_time(str(obj["metadata"].get("creationTimestamp", "1970-01-01T00:00:00Z")))
                # One that was there before our first look: its age is known by the API server's clock alone.
                self._known[uid] = _Known(now if self._looked else min(now, created))
            known = self._known[uid]
            known.trouble = pull_trouble(obj) or known.trouble
            known.since.note(obj, now, gone)
            view = read_pod(obj, now, known.since, gone, known.trouble)
            if view is not None:
                known.count_restarts(view, now)
                views[uid] = view
        return views

    def _newest(self, views: list[PodView]) -> dict[str, PodView]:
        newest: dict[str, PodView] = {}
        for view in sorted(views, key=lambda v: (v.alive, v.created, self._known[v.uid].t_seen, v.uid)):
            newest[view.name] = view
        return newest

    def _process(self, view: PodView, now: float) -> Process:
        known = self._known[view.uid]
        watch = self._watches.get(view.uid)
        if watch is not None and watch.probe is not None:
            known.boot = watch.probe.boot
        if not view.alive and known.t_exited is None:
            known.t_exited = now
        if view.phase == "running" and known.t_ran is None:
            known.t_ran = now
        phase = view.phase
        unheard = view.role == "server" and phase == "running" and known.boot is None
        if unheard:
            phase = "starting"
        return Process(
            name=view.name,
            role=view.role,  # type: ignore[arg-type]
            instance=view.instance,
            phase=phase,  # type: ignore[arg-type]
            boot=known.boot,
            address=view.address,
            incarnation=view.incarnation,
            exit_code=view.exit_code,
            exit_signal=view.exit_signal,
            leaving=view.deleting,
            proven_dead=view.proven_dead or view.instance in self._dead,
            t_started=known.t_seen if known.t_restarted is None else known.t_restarted,
            t_exited=known.t_exited if not view.alive else None,
            lived_s=_life_s(view, known) if not view.alive else None,
            claim=view.claim,
            held_by_claim=view.held_by_claim,
            claim_out_of_reach=view.claim_out_of_reach,
            reason=view.reason,
            never_ran=view.never_ran and known.t_ran is None,
            unreachable=view.unreachable,
            unheard=unheard,
        )

    def _note_dead(self, pods: dict[str, PodView], past: dict[str, PodView]) -> None:
        for view in (*pods.values(), *past.values()):
            if view.proven_dead:
                self._dead.add(view.instance)
        for uid, view in past.items():
            watch, t_deleted = self._watches.get(uid), self._known[uid].since.deleting
            if watch is None or watch.probe is None or watch.t_closed is None or t_deleted is None:
                continue
            if watch.probe.refused and watch.t_closed >= t_deleted:
                self._dead.add(view.instance)

    # --- watches ---

    def _keep_watches(self, pods: dict[str, PodView], past: dict[str, PodView], newest: dict[str, PodView]) -> None:
        for uid, view in pods.items():
            listens = view.role == "server" and view.phase == "running" and view.address
            if listens and uid not in self._watches and self.secrets.token is not None:
                self._watches[uid] = self._watch(view, self.secrets.token)
        for uid in list(self._watches):
            found = pods.get(uid) or past.get(uid)
            if found is None or found.proven_dead or found.instance in self._dead:
                self._end_watch(uid, found)

    def _watch(self, view: PodView, token: str) -> ServerWatch:
        return ServerWatch(
            view.address,
            self._ref.uid,
            token,
            self.spec.recovery.failover.timeout_seconds,
            self.wake,
            self.spec.training.stop_after.updates,
            self._clock,
            self._dialling(view),
        )

    def _dialling(self, view: PodView) -> Callable[[], bool]:
        """For the threads of watches and orders: asks the cache, which knows more than the look that made `view`."""
        return lambda: may_dial(self._cache.pod(self._ref.id, view.uid), view.ip)

    def _end_watch(self, uid: str, view: PodView | None) -> None:
        watch = self._watches.pop(uid)
        known = self._known.get(uid)
        if watch.probe is not None and known is not None:
            known.boot = watch.probe.boot
            if view is not None:
                self._last_probes[view.name] = watch.probe
        watch.close()

    def _probes(self, newest: dict[str, PodView]) -> dict[str, Probe]:
        """Of each server the newest pod's word, or, until it speaks, the one before it."""
        for name, view in newest.items():
            watch = self._watches.get(view.uid)
            if watch is not None and watch.probe is not None:
                self._last_probes[name] = watch.probe
        return dict(self._last_probes)

    # --- redis ---

    def _redis_state(self, view: PodView | None, ended: bool) -> RedisState:
        """Watch the job's present Redis and no other: a former one's address may be a stranger's by now."""
        url = None if ended else self._redis_url(view)
        if self._redis is not None and self._redis[0] != url:
            self._redis[1].close()
            self._last_run = self._redis[1].state.run_id
            self._redis = None
        if url is None:
            return RedisState(False, self._last_run)
        if self._redis is None:
            guard = (self._dialling(view),) if view is not None and self.spec.own_redis else ()
            interval_s = self.spec.recovery.failover.heartbeat_seconds
            self._redis = (url, RedisWatch(url, interval_s, self.wake, *guard))
        return self._redis[1].state

    def _redis_url(self, view: PodView | None) -> str | None:
        if not self.spec.own_redis:
            return self.spec.recovery.buffer.url if self.spec.traits.buffered else None
        if view is None or not view.alive or not view.address:
            return None
        return redis_url(f"{view.ip}:{REDIS_PORT}", self.secrets.redis_password)


def _life_s(view: PodView, known: _Known) -> float:
    """How long it ran: by the kubelet's word, else as far as we saw it run."""
    if view.lived_s is not None:
        return view.lived_s
    return 0.0 if known.t_ran is None or known.t_exited is None else known.t_exited - known.t_ran
