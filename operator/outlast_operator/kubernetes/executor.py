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
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, wait
from typing import Any

from outlast.api.view import Member, View
from outlast.control import ServerControl
from outlast_operator.kubernetes.api import CORE, Api, ApiError
from outlast_operator.kubernetes.cache import Cache
from outlast_operator.kubernetes.events import Events
from outlast_operator.kubernetes.observer import REFUSED, Observer, Sight, refused_start
from outlast_operator.kubernetes.pods import PodView
from outlast_operator.kubernetes.pools import Pools
from outlast_operator.manifests.children import redis_pod
from outlast_operator.manifests.names import CHAIN_LABEL, NAMED_LABEL, SLOTS_ANNOTATION, JobRef, is_owned
from outlast_operator.manifests.pods import Images, process_pod, with_slots
from outlast_operator.orders import Order, Orders, order_of
from outlast_operator.state import (
    Action,
    AssignSlot,
    Emit,
    FinishJob,
    InstallView,
    KillProcess,
    RequestCheckpoint,
    SetSlots,
    StartProcess,
    StartRedis,
    TermProcess,
)

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
        self._orders = Orders()
        self._under_way: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, str], float] = {}  # (pod uid, term | kill) -> when
        self._refusals = 0

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
            case InstallView() | SetSlots() | FinishJob() | RequestCheckpoint():
                order = order_of(action)
                assert order is not None
                self._send(order, self._pools.saving if isinstance(action, RequestCheckpoint) else self._pools.orders)
            case AssignSlot():
                self._assign(action, sight)
            case Emit(type_, reason, message):
                self._events.tell(type_, reason, message)

    # --- starting ---

    def _start(self, action: StartProcess, sight: Sight) -> None:
        if action.role == "worker" and self._superseded(action, sight):
            log.info("%s is not started: incarnation %d is not newer", action.name, action.incarnation)
            return
        if not self._make_room(action.name, action.replaces, sight):
            return
        spec = self._observer.spec
        self._create(
            action.name, action.role, lambda: process_pod(self._ref, spec, self._images, action), action.incarnation
        )

    def _superseded(self, action: StartProcess, sight: Sight) -> bool:
        started = (*sight.pods.values(), *sight.newest.values())
        return any(v.name == action.name and v.incarnation >= action.incarnation for v in started)

    def _make_room(self, name: str, replaces: str | None, sight: Sight) -> bool:
        """Take away what `replaces` names, if it is there still, and older dead pods of the name."""
        living = sight.living(name)
        if living is not None and living.instance != replaces:
            log.info("%s is not started: pod %s runs under this name", name, living.pod)
            return False
        for view in list(sight.pods.values()):
            if view.name != name:
                continue
            if not view.proven_dead:
                self._delete(view, 0)  # its node does not answer: nobody would confirm its end
            elif view.instance != replaces or view.never_ran:
                self._delete(view, None)  # the newest dead one stays, for its log
        return True

    def _create(self, name: str, role: str, build: Callable[[], Json], incarnation: int = 1) -> None:
        try:
            pod = build()
            self._cache.put_pod(self._api.create(CORE, self._ref.namespace, "pods", pod))
            self._observer.refused_starts.pop(name, None)
        except ValueError as error:
            self._refused(name, role, 1, str(error), incarnation)
        except ApiError as error:
            if error.already_exists:
                self._adopt(name, role, pod, incarnation)
            elif error.code == 403 and "being terminated" in error.message:
                log.info("%s is not started: its namespace is being deleted", name)
            elif error.code in (400, 403, 422):
                self._refused(name, role, None if _is_for_now(error) else 1, error.message, incarnation)
            else:
                raise

    def _adopt(self, name: str, role: str, pod: Json, incarnation: int) -> None:
        """The very pod exists: made by an operator before us, or by somebody who is not one."""
        its_name = pod["metadata"]["name"]
        existing = self._api.get(CORE, self._ref.namespace, "pods", its_name)
        if is_owned(existing, self._ref.uid):
            self._cache.put_pod(existing)
            return
        message = f"a pod named {its_name} exists and belongs to somebody else; delete it, or rename this job"
        self._refused(name, role, 1, message, incarnation)

    def _refused(self, name: str, role: str, code: int | None, message: str, incarnation: int) -> None:
        """A start that the API server refused is one that failed: back-off and its limit hold for it."""
        self._refusals += 1
        now = self._clock()
        self._events.tell("Warning", "PodRefused", f"{name}: {message}")
        instance = f"{REFUSED}{self._refusals}-{now:.3f}"
        self._observer.refused_starts[name] = refused_start(
            name, role, instance, now, incarnation=incarnation, exit_code=code, reason=message
        )

    def _start_redis(self, replaces: str | None, sight: Sight) -> None:
        view = sight.newest.get("redis")
        if view is not None and view.uid in sight.pods and not view.deleting:
            tries = self._observer.short_lives_of(view.uid)
            if tries < REDIS_RESTARTS and not (view.never_ran or view.over):
                return  # the kubelet restarts it in place, over its file
            self._delete(view, KILL_GRACE_S)
            return
        if self._make_room("redis", replaces, sight):
            spec = self._observer.spec
            self._create("redis", "redis", lambda: redis_pod(self._ref, spec, self._images, replaces))

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
        self._asked = {asked: t for asked, t in self._asked.items() if now - t < AGAIN_S} | {key: now}
        self._delete(view, KILL_GRACE_S if how == "kill" else TERM_GRACE_S)

    def _ask_to_leave(self, view: PodView) -> None:
        """The pod stays, with its log; only its process ends. Workers leave by themselves."""
        self._tell(view, "leave", lambda control: control.leave())

    def dismiss(self, uids: Collection[str], sight: Sight) -> None:
        """Tell the servers in these pods that nothing of them is wanted any more, so that none of them waits for
        successors. Those that do not listen within `DISMISS_S` are left to their grace."""
        views = [view for view in sight.pods.values() if view.uid in uids]
        told = [self._tell(view, "finish", lambda control: control.finish()) for view in views]
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

    def _forget(self, uid: str) -> None:
        existing, _ = self._cache.pods(self._ref.uid)
        if uid in existing:
            self._cache.remove_pod(existing[uid])

    def clean_up(self, sight: Sight) -> None:
        """After the end: with cleanPodPolicy All, pods that have ended too; else those that only a sidecar keeps, and
        those whose image the kubelet would try for ever, on a node that others could use."""
        policy = self._observer.spec.run_policy.clean_pod_policy
        for view in sight.pods.values():
            unwanted = policy == "All" or (policy == "Running" and (view.lingers or view.never_ran))
            if unwanted and not view.alive and not view.deleting:
                self._delete(view, None)

    # --- servers and labels ---

    def _tell(self, view: PodView, what: str, call: Callable[[ServerControl], object]) -> Future[None] | None:
        """What no plan has to say. None: it is no server, or has not spoken yet."""
        boot = self._observer.boot_of(view.uid)
        if view.role != "server" or boot is None:
            return None
        return self._send(Order(Member(view.name, boot, view.address), what, call), self._pools.orders)

    def _send(self, order: Order, pool: Pool) -> Future[None] | None:
        return self._orders.send(order, self._observer.watch_of(order.to.boot), pool)

    def _assign(self, action: AssignSlot, sight: Sight) -> None:
        view = sight.living(action.worker)
        existing, _ = self._cache.pods(self._ref.uid)
        if view is None or view.uid not in existing:
            return
        text = (existing[view.uid]["metadata"].get("annotations") or {}).get(SLOTS_ANNOTATION, "{}")
        slots = read_slots(text)
        if slots.get(action.slot) == action.incarnation:
            return
        patch = with_slots({**slots, action.slot: action.incarnation})
        self._cache.put_pod(self._api.patch(CORE, view.namespace, "pods", view.pod, patch))

    def label_chains(self, views: dict[int, View], sight: Sight) -> None:
        """Show in the pods' labels who is head; who is in no view (any more) has no such label, who is dead no name."""
        existing, _ = self._cache.pods(self._ref.uid)
        chains = [[m.boot for m in view.members] for view in views.values()]
        wanted = {boot: "replica" if at else "head" for chain in chains for at, boot in enumerate(chain)}
        for uid, pod in sight.pods.items():
            if pod.role != "server" or uid not in existing:
                continue
            found = existing[uid]["metadata"].get("labels") or {}
            label = wanted.get(self._observer.boot_of(uid) or "") if pod.alive else None
            named = "true" if pod.alive else None
            if (found.get(CHAIN_LABEL), found.get(NAMED_LABEL)) != (label, named):
                self._label(pod, {CHAIN_LABEL: label, NAMED_LABEL: named})

    def _label(self, pod: PodView, wanted: dict[str, str | None]) -> None:
        key = (pod.uid, f"label {wanted}")
        with self._lock:
            if key in self._under_way:
                return
            self._under_way.add(key)

        def run() -> None:
            try:
                patch: Json = {"metadata": {"labels": wanted}}
                self._cache.put_pod(self._api.patch(CORE, pod.namespace, "pods", pod.pod, patch))
            except ApiError as error:
                log.info("%s was not labelled %s: %s", pod.pod, wanted, error)
            finally:
                with self._lock:
                    self._under_way.discard(key)

        self._pools.api.submit(run)


def read_slots(text: str) -> dict[int, int]:
    """The annotation of a worker's further slots; what somebody else wrote there counts for nothing."""
    try:
        raw = json.loads(text)
        return {int(slot): int(incarnation) for slot, incarnation in raw.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _is_for_now(error: ApiError) -> bool:
    """Whether a pod is forbidden through no fault of its own: no quota is left, or a right of ours is missing."""
    return error.code == 403 and any(words in error.message for words in ("exceeded quota", "cannot create resource"))
