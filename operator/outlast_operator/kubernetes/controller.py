"""All jobs of this operator: a loop for each while it leads, and audits of the watches.

Rules. (1) A non-leader maintains its cache but takes no action. (2) A new leader lists once, so that no loop starts
from an incomplete cache. (3) Each minute, leader or not, and at once when a watch was restarted, the lists are
compared with the cache, and what the watches missed is corrected. When they miss changes twice in a row, or the
comparison fails repeatedly, it is unknown whether events flow and `healthy` is False; the kubelet then restarts this
process. (4) A leader that has lost the Lease ends its loops for good: from then on none of them acts, even if its
requests are still pending and this operator leads again. Then it begins as any new leader does, with a list and with
new loops.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from outlast_operator.kubernetes.cluster.api import CORE, JOBS, PLURAL, Api, ApiError
from outlast_operator.kubernetes.cluster.cache import Cache, Key
from outlast_operator.kubernetes.cluster.clock import Pulse
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.acceptance import Account
from outlast_operator.kubernetes.job.loop import JobLoop, managed_by_us
from outlast_operator.kubernetes.job.runtime import Tools
from outlast_operator.kubernetes.manifests.names import JOB_LABEL
from outlast_operator.kubernetes.manifests.network import Peers
from outlast_operator.kubernetes.manifests.pods import Images

log = logging.getLogger("outlast.controller")

Json = dict[str, Any]
AUDIT_S, IN_FLIGHT_S, PRIME_RETRY_S = 60.0, 3.0, 1.0
DEAF_AUDITS, BLIND_AUDITS = 2, 3
UNANSWERED_AUDITS = 10  # a restart does not bring the API server back, and waits ever longer


class Controller:
    """`namespaces` None: all of them. `on_useless` is called when this operator holds the lead and cannot use it.
    `may_act`: whether nobody else can lead at this moment; it is asked before each act."""

    def __init__(
        self,
        api: Api,
        images: Images,
        namespaces: Sequence[str] | None,
        on_useless: Callable[[], None] | None = None,
        may_act: Callable[[], bool] = lambda: True,
        peers: Peers | None = None,
        account: Account | None = None,
    ) -> None:
        self.api = api
        self.cache = Cache(self._changed)
        self._pulse = Pulse()
        self._tools = Tools(
            api, self.cache, images, Pools.make(), may_act=may_act, peers=peers, account=account,
            t_resumed=self._pulse.t_resumed,
        )  # fmt: skip
        self._namespaces = None if namespaces is None else list(namespaces)
        self._on_useless = on_useless if on_useless is not None else lambda: os._exit(1)
        self._loops: dict[Key, JobLoop] = {}
        self._lock = threading.Lock()
        self._term = 0  # grows with each gain and loss: who began in another one has nothing to say any more
        self._gained = self._leading = False
        self._stopped = threading.Event()
        self._relisted = threading.Event()
        self._deaf = self._blind = 0  # audits in a row that found the watches behind; that failed
        self._unanswered = False

    def start(self) -> None:
        """Audit the watches, leader or not."""
        self._pulse.start()
        threading.Thread(target=self._audit_for_ever, name="audit", daemon=True).start()

    # --- leadership ---

    def lead(self, leading: bool) -> None:
        with self._lock:
            gained, lost = leading and not self._gained, self._gained and not leading
            if gained or lost:
                self._term, self._gained, self._leading = self._term + 1, leading, False
                self._end_loops()
            term = self._term
        if gained:
            threading.Thread(target=self._begin, args=(term,), name="begin", daemon=True).start()

    def _begin(self, term: int) -> None:
        try:
            self._prime(term)
        except Exception:
            log.exception("the leader cannot start its loops")
            self._on_useless()  # else we would hold the Lease and do nothing

    def _prime(self, term: int) -> None:
        """List, and start the loops, unless we lead no more."""
        while not self._stopped.is_set() and term == self._term:
            try:
                jobs, pods, as_of = self._list("")
            except ApiError as error:
                log.warning("the jobs cannot be listed: %s (retrying)", error)
                self._stopped.wait(PRIME_RETRY_S)
                continue
            self.cache.align(jobs, pods, as_of, self._namespaces)
            with self._lock:
                self._leading = term == self._term and not self._stopped.is_set()
            for job in self.cache.jobs():
                self._changed(job["metadata"]["namespace"], job["metadata"]["name"])
            return

    def stop(self) -> None:
        """End the loops; the jobs go on."""
        self._stopped.set()
        self._relisted.set()
        with self._lock:
            self._leading = False
            self._end_loops()

    def _end_loops(self) -> None:
        """With the lock held."""
        for loop in self._loops.values():
            loop.stop()
        self._loops = {}

    # --- jobs ---

    def _changed(self, namespace: str, name: str) -> None:
        key = (namespace, name)
        with self._lock:
            if not self._leading:
                return
            job = self.cache.job(namespace, name)  # in here: an older word must not stop a loop just started
            loop = self._loops.get(key)
            ours = job is not None and managed_by_us(job) and not job["metadata"].get("deletionTimestamp")
            if loop is not None and (job is None or loop.ref.uid != job["metadata"]["uid"]):
                loop.stop(gone=True)
                loop = self._loops.pop(key) and None
            if job is not None and ours and (loop is None or not loop.alive):
                loop = self._loops[key] = JobLoop(self._tools, job)
                loop.start()
            elif loop is not None:
                loop.wake()

    # --- health ---

    @property
    def healthy(self) -> bool:
        """Whether events flow, as far as known."""
        return self._deaf < DEAF_AUDITS and self._blind < (UNANSWERED_AUDITS if self._unanswered else BLIND_AUDITS)

    def relisted(self) -> None:
        """A watch was begun anew with a list. What was deleted meanwhile is not in it, and nobody tells."""
        self._relisted.set()

    def counts(self) -> dict[str, int]:
        with self._lock:
            loops = list(self._loops.values())
        return {"loops": sum(loop.alive for loop in loops), "failing": sum(loop.failing > 0 for loop in loops)}

    @property
    def leading(self) -> bool:
        return self._leading

    def _audit_for_ever(self) -> None:
        while not self._stopped.is_set():
            relisted = self._relisted.wait(AUDIT_S)
            if relisted:
                self._stopped.wait(IN_FLIGHT_S)  # the rest of the list
                self._relisted.clear()
            if not self._stopped.is_set():
                self.audit(counts=not relisted)

    def audit(self, counts: bool = True) -> None:
        """Compare and correct. `counts`: it is a fault of the watches if they are behind."""
        try:
            behind = self._audit()
        except Exception as error:
            self._blind += 1
            self._unanswered = isinstance(error, ApiError) and (error.code == 0 or error.code >= 500)
            log.warning("the watches could not be audited: %s", error, exc_info=not isinstance(error, ApiError))
            return
        self._blind = 0
        if counts or not behind:
            self._deaf = self._deaf + 1 if behind else 0
        if behind:
            log.warning("watches missed %d objects", behind)

    def _audit(self) -> int:
        """Returns how many objects the watches missed."""
        jobs, pods, as_of = self._list("0")
        behind = self.cache.behind(jobs, pods)
        if behind:
            self._stopped.wait(IN_FLIGHT_S)
            behind &= self.cache.behind(jobs, pods)
        self.cache.align(jobs, pods, as_of, self._namespaces)
        return len(behind)

    def _list(self, version: str) -> tuple[list[Json], list[Json], int]:
        """Jobs, their pods, the oldest version of the lists. `version` "0": from the API server's own cache."""
        query = {"resourceVersion": version} if version else {}
        jobs: list[Json] = []
        pods: list[Json] = []
        oldest: list[int] = []
        for namespace in self._namespaces if self._namespaces is not None else [None]:
            listed = self.api.list(JOBS, namespace, PLURAL, **query)
            its_pods = self.api.list(CORE, namespace, "pods", labelSelector=JOB_LABEL, **query)
            jobs += listed.get("items") or []
            pods += its_pods.get("items") or []
            oldest += [_version(listed), _version(its_pods)]
        return jobs, pods, min(oldest)


def _version(listed: Json) -> int:
    text = str(listed["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0
