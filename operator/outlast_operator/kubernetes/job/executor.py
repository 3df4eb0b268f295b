"""Carrying a plan's actions out on pods and servers.

Rules. (1) Every action is safe to repeat, and what comes late is refused: starts by the cache and by names that follow
from what is started, deletions by uid. (2) Answers of the API server go into the cache at once, so that the next turn
sees them before any watch tells. (3) Nothing waits for a server: what is sent to one goes through a pool, one message
of a kind at a time. (4) A pod that is to be killed is given a second, so that the kubelet confirms its end; one whose
node does not answer is removed by force only when its replacement is started.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from outlast.api.view import Member, View
from outlast_operator.kubernetes.cluster.api import CORE, Api, ApiError
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.events import Events
from outlast_operator.kubernetes.job.observer import Observer, Sight
from outlast_operator.kubernetes.job.owned import of_uid
from outlast_operator.kubernetes.job.pods import PodView
from outlast_operator.kubernetes.job.refusals import Refusals, name_taken
from outlast_operator.kubernetes.manifests.children import redis_pod
from outlast_operator.kubernetes.manifests.names import CHAIN_LABEL, NAMED_LABEL, SLOTS_ANNOTATION, JobRef, is_owned
from outlast_operator.kubernetes.manifests.pods import Images, process_pod, with_slots
from outlast_operator.planner.actions import (
    Action,
    AssignSlot,
    Emit,
    EndRedis,
    KillProcess,
    PauseAppends,
    RequestCheckpoint,
    ServerCall,
    StartProcess,
    StartRedis,
    TermProcess,
)
from outlast_operator.runtime.orders import Dismiss, Leave, OneAtATime
from outlast_operator.runtime.watches import RedisWatch

log = logging.getLogger("outlast.kubernetes")

Json = dict[str, Any]
KILL_GRACE_S = 1
DISMISS_S = 3.0
TERM_GRACE_S = 3  # whom the planner ends has nothing to hand over: what it holds is saved, or not wanted any more
AGAIN_S = 5.0  # between two requests to end the same pod
REDIS_RESTARTS = 5  # in place, after short lives; then its file is given up, and a fresh Redis is started


class Executor:
    """Acts for one job. Used by its loop; `sight` is the look that the plan was made from."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        ref: JobRef,
        images: Images,
        observer: Observer,
        events: Events,
        pools: Pools,
        clock: Callable[[], float],
    ) -> None:
        self._api, self._cache, self._ref, self._images = api, cache, ref, images
        self._observer, self._events, self._clock = observer, events, clock
        self._pools = pools
        self._calls = OneAtATime()
        self._asked: dict[tuple[str, str], float] = {}  # (pod uid, term | kill) -> when
        self.refusals = Refusals(clock)  # of pods

    def execute(self, action: Action, sight: Sight, ended: bool) -> None:
        """`ended`: the job has its outcome; pods are then cleaned up as its policy says. Raises `ApiError`."""
        match action:
            case StartProcess():
                self._start(action, sight)
            case StartRedis(replaces):
                self._start_redis(replaces, sight)
            case KillProcess(name, instance):
                self._end(name, instance, "kill", sight, ended)
            case TermProcess(name, instance):
                self._end(name, instance, "term", sight, ended)
            case ServerCall():
                self._send(action, self._pools.saving if isinstance(action, RequestCheckpoint) else self._pools.orders)
            case PauseAppends():
                self._tell_redis("pause", lambda watch: watch.pause_appends(self._ref.uid))
            case EndRedis(instance):
                view = sight.living("redis")
                if view is not None and view.instance == instance:
                    self._tell_redis("end", lambda watch: watch.shut_down())
            case AssignSlot():
                self._assign(action, sight)
            case Emit(type_, reason, message):
                self._events.tell(type_, reason, message)

    # --- starting ---

    def _start(self, action: StartProcess, sight: Sight) -> None:
        if action.role == "worker" and self._superseded(action, sight):
            log.info("not starting %s: incarnation %d is not newer", action.name, action.incarnation)
            return
        if not self._make_room(action.name, action.replaces, sight):
            return
        spec = self._observer.spec
        self._create(action.name, lambda: process_pod(self._ref, spec, self._images, action))

    def _superseded(self, action: StartProcess, sight: Sight) -> bool:
        started = (*sight.pods.values(), *sight.newest.values())
        return any(v.name == action.name and v.incarnation >= action.incarnation for v in started)

    def _make_room(self, name: str, replaces: str | None, sight: Sight) -> bool:
        """Take away what `replaces` names, if it is there still, and older dead pods of the name."""
        living = sight.living(name)
        if living is not None and living.instance != replaces:
            log.info("not starting %s: pod %s runs under this name", name, living.pod)
            return False
        for view in list(sight.pods.values()):
            if view.name != name:
                continue
            if view.role == "worker" and view.alive and view.deleting:
                continue  # its node answers and ends it within its grace; the slot need not wait for that (reach.py)
            if not view.proven_dead:
                self._delete(view, 0)  # its node does not answer: nobody would confirm its end
            elif view.instance != replaces:
                self._delete(view, None)  # the newest dead one stays, for its log
        return True

    def _create(self, name: str, build: Callable[[], Json]) -> None:
        """What is refused is a wait: the same pod, under the same name, is asked for again when the plan says so."""
        pod: Json = {"kind": "Pod", "spec": {}}
        try:
            pod = build()
            self._cache.put_pod(self._api.create(CORE, self._ref.namespace, "pods", pod, strict=True))
        except ValueError as error:
            self._refused(name, ApiError(400, "BadRequest", str(error), ("spec",)), pod)
        except ApiError as error:
            if error.already_exists:
                self._adopt(name, pod)
            else:
                self._refused(name, error, pod)
        else:
            self._granted(name)

    def _adopt(self, name: str, pod: Json) -> None:
        """The very pod exists: made by an earlier operator, or by another client."""
        its_name = pod["metadata"]["name"]
        existing = self._api.get(CORE, self._ref.namespace, "pods", its_name)
        if is_owned(existing, self._ref):
            self._cache.put_pod(existing)
            self._granted(name)
        else:
            self._refused(name, name_taken("pod", its_name), pod)

    def _refused(self, name: str, error: ApiError, pod: Json) -> None:
        log.info("%s/%s: the pod of %s is refused: %s", self._ref.namespace, self._ref.name, name, error)
        self.refusals.note(name, error, pod)
        self._observer.wake()  # to say so

    def _granted(self, name: str) -> None:
        if self.refusals.clear(name):
            self._observer.wake()  # others that wait for the same are asked for at once

    def _start_redis(self, replaces: str | None, sight: Sight) -> None:
        view = sight.newest.get("redis")
        if view is not None and view.uid in sight.pods and not view.deleting:
            tries = self._observer.short_lives_of(view.uid)
            if tries < REDIS_RESTARTS and not view.over:
                return  # the kubelet restarts it in place, over its file
            self._delete(view, KILL_GRACE_S)
            return
        if self._make_room("redis", replaces, sight):
            spec = self._observer.spec
            self._create("redis", lambda: redis_pod(self._ref, spec, self._images, replaces))

    # --- ending ---

    def _end(self, name: str, instance: str, how: str, sight: Sight, ended: bool) -> None:
        view = sight.newest.get(name)
        if view is None or view.instance != instance or view.uid not in sight.pods:
            return
        if ended and self._observer.spec.run_policy.clean_pod_policy == "None":
            self._ask_to_leave(view)
            return
        now, key = self._clock(), (view.uid, how)
        if now - self._asked.get(key, -AGAIN_S) < AGAIN_S or (how == "term" and view.deleting):
            return
        if how == "term":
            self._ask_to_leave(view)  # no replacement comes
        self._asked = {asked: t for asked, t in self._asked.items() if now - t < AGAIN_S} | {key: now}
        self._delete(view, KILL_GRACE_S if how == "kill" else TERM_GRACE_S)
        if view.role == "redis":
            self._tell_redis("end", lambda watch: watch.shut_down())  # else it waits for its data to be applied

    def _ask_to_leave(self, view: PodView) -> None:
        """The pod stays, with its log; only its process ends. Workers leave by themselves."""
        self._tell(view, Leave)

    def dismiss(self, uids: Collection[str], sight: Sight) -> None:
        """Tell the servers in these pods that nothing of them is wanted any more, so that none of them waits for
        successors. Those that do not listen within `DISMISS_S` are left to their grace."""
        views = [view for view in sight.pods.values() if view.uid in uids]
        told = [self._tell(view, Dismiss) for view in views]
        wait([sent for sent in told if sent is not None], DISMISS_S)

    def _delete(self, view: PodView, grace_s: int | None) -> None:
        try:
            answer = self._api.delete(CORE, view.namespace, "pods", view.pod, view.uid, grace_s)
        except ApiError as error:
            if error.not_found or error.conflict:  # it is gone, or another one has its name
                self._forget(view.uid)
                return
            raise
        if answer.get("kind") == "Pod" and answer["metadata"].get("deletionTimestamp") and grace_s != 0:
            self._cache.put_pod(answer)
        else:
            self._forget(view.uid)

    def _patch(self, view: PodView, body: Json) -> None:
        try:
            self._cache.put_pod(self._api.patch(CORE, view.namespace, "pods", view.pod, of_uid(body, view.uid)))
        except ApiError as error:
            another = error.code == 422 and "metadata.uid" in error.message  # has its name: a uid never changes
            if not (error.not_found or another):
                raise
            self._forget(view.uid)  # deleted, and no watch has told of it yet

    def _forget(self, uid: str) -> None:
        existing, _ = self._cache.pods(self._ref.id)
        if uid in existing:
            self._cache.remove_pod(existing[uid])

    def clean_up(self, sight: Sight) -> None:
        """After the end: with cleanPodPolicy All, pods that have ended too; else those that only a sidecar keeps."""
        policy = self._observer.spec.run_policy.clean_pod_policy
        for view in sight.pods.values():
            unwanted = policy == "All" or (policy == "Running" and view.lingers)
            if unwanted and not view.alive and not view.deleting:
                self._delete(view, None)

    # --- servers and labels ---

    def _tell(self, view: PodView, call: type[ServerCall]) -> Future[None] | None:
        """What no plan has to say. None: it is no server, or has not spoken yet."""
        boot = self._observer.boot_of(view.uid)
        if view.role != "server" or boot is None:
            return None
        return self._send(call(Member(view.name, boot, view.address)), self._pools.orders)

    def _send(self, order: ServerCall, pool: Pool) -> Future[None] | None:
        return self._calls.send(order, self._observer.watch_of(order.to.boot), pool)

    def _tell_redis(self, what: str, call: Callable[[RedisWatch], None]) -> None:
        watch = self._observer.redis_watch
        if watch is not None:
            self._calls.submit(self._pools.orders, ("redis", what), lambda: call(watch))

    def _assign(self, action: AssignSlot, sight: Sight) -> None:
        view = sight.living(action.worker)
        existing, _ = self._cache.pods(self._ref.id)
        if view is None or view.uid not in existing:
            return
        text = (existing[view.uid]["metadata"].get("annotations") or {}).get(SLOTS_ANNOTATION, "{}")
        slots = read_slots(text)
        if slots.get(action.slot) == action.incarnation:
            return
        patch = with_slots({**slots, action.slot: action.incarnation})
        self._patch(view, patch)

    def label_chains(self, views: dict[int, View], sight: Sight) -> None:
        """Show in the pods' labels who is head; who is in no view (any more) has no such label, who is dead no name."""
        existing, _ = self._cache.pods(self._ref.id)
        chains = [[m.boot for m in view.members] for view in views.values()]
        wanted = {boot: "replica" if at else "head" for chain in chains for at, boot in enumerate(chain)}
        for uid, pod in sight.pods.items():
            if pod.role != "server" or uid not in existing:
                continue
            found = existing[uid]["metadata"].get("labels") or {}
            label = wanted.get(self._observer.boot_of(uid) or "") if pod.alive else None
            named = "true" if pod.alive else None
            if (found.get(CHAIN_LABEL), found.get(NAMED_LABEL)) != (label, named):
                labels = {CHAIN_LABEL: label, NAMED_LABEL: named}
                self._calls.submit(self._pools.api, (pod.uid, f"label {labels}"), partial(self._label, pod, labels))

    def _label(self, pod: PodView, wanted: dict[str, str | None]) -> None:
        try:
            self._patch(pod, {"metadata": {"labels": wanted}})
        except ApiError as error:
            log.info("%s was not labelled %s: %s", pod.pod, wanted, error)


def read_slots(text: str) -> dict[int, int]:
    """The annotation of a worker's further slots; what another client wrote there is ignored."""
    try:
        raw = json.loads(text)
        return {int(slot): int(incarnation) for slot, incarnation in raw.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
