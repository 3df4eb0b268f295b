"""Where a job's checkpoints lie in a cluster, and the claims that hold them.

Rules. (1) No API tells whether a class knows ReadWriteMany, so each server gets a claim of its own, unless
`accessModes` asks for one that all mount. (2) Whether there is a default class is shown by a claim that names none: the
API server writes the class into it. One that got none and is not bound in a moment (to an administrator's volume) never
will be, and checkpoints then lie in the servers' pods. Until such a claim is accepted nothing is known: a refusal is a
wait like any other, and the choice stays open. (3) A claim of another owner is never mounted, changed or deleted.
(4) A claim that a server gave up is deleted when its node can take part in that, or is gone: at once if no server has
run with it, else when the server has its state again elsewhere. The others go with the job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from outlast.api.base import parse_quantity
from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.cluster.api import CORE, Api, ApiError
from outlast_operator.kubernetes.job.owned import find, find_or_make, of_uid
from outlast_operator.kubernetes.job.refusals import Refusals
from outlast_operator.kubernetes.manifests.children import checkpoints_claim
from outlast_operator.kubernetes.manifests.names import JobRef, checkpoint_claim, is_owned, server_claim
from outlast_operator.kubernetes.manifests.template import Json
from outlast_operator.planner.actions import StartProcess
from outlast_operator.planner.checkpoints import ServerClaim, Storage
from outlast_operator.planner.status import JobStatus, Wait
from outlast_operator.planner.turn import server_name, server_names

log = logging.getLogger("outlast.kubernetes")

KIND, CLAIMS = "PersistentVolumeClaim", "persistentvolumeclaims"
UNBOUND_S = 5.0  # a claim without a class is given so long to be bound to a volume without one
RETIRE_S = 10.0  # between two looks at claims that are given up
EXPAND_AGAIN_S = 60.0  # at most, between two requests to expand claims: most classes never allow it, and nothing waits
SELECTED_NODE = "volume.kubernetes.io/selected-node"
_IN_THE_POD = ("emptyDir", "ephemeral")  # volumes that go with their pod
_EXPANSION = "expansion"


class CheckpointStorage:
    """The claims of one job. Used by its loop alone; nothing here waits."""

    def __init__(self, api: Api, ref: JobRef, clock: Callable[[], float]) -> None:
        self._api, self._ref, self._clock = api, ref, clock
        self._found: Storage | None = None  # what the cluster offers, once that is known
        self._t_accepted: float | None = None  # a claim without a class was first seen
        self._probes = Refusals(clock)  # of the claim that shows what the cluster offers
        self._expansions = Refusals(clock, longest_s=EXPAND_AGAIN_S)
        self._retired: set[str] = set()  # names of claims that were given up and are deleted
        self._looked, self._seen = 0.0, set[str]()  # when claims that are given up were last looked at, and which
        self._expanded = 0  # bytes that the claims were expanded to

    # --- choosing ---

    @property
    def waits(self) -> dict[str, Wait]:
        """What keeps the choice open, by object."""
        return self._probes.waits

    def choose(self, spec: JobSpec, status: JobStatus) -> Storage | None:
        """What was recorded, or what the spec and the cluster offer a job that starts now; None while that is not
        known, see `waits`."""
        if status.storage is not None:
            return status.storage
        if status.views:
            return "Shared"  # begun by a release that knew no other
        volume, claim = spec.recovery.checkpoint.volume, spec.recovery.checkpoint.own_claim
        if claim is None:
            return "NodeLocal" if any(kind in _IN_THE_POD for kind in volume or {}) else "Shared"
        if claim.shared:
            return "Shared"
        if claim.storage_class_name is not None:
            return "PerServer"
        if self._found is None and status.outcome is None:
            self._found = self._try_default_class(spec)
        return self._found

    def _try_default_class(self, spec: JobSpec) -> Storage | None:
        """One look. The claim is the first server's, which keeps it where there is a class."""
        wanted = self._claim(spec, server_claim(self._ref, server_name(spec, 0, 0), 0))
        name = f"{KIND} {wanted['metadata']['name']}"
        wait = self.waits.get(name)
        if wait is not None and self._clock() < (wait.retry_at or 0.0):
            return None
        try:
            made = find_or_make(self._api, self._ref, CLAIMS, wanted)
        except ApiError as error:
            log.info("%s/%s: %s: %s", self._ref.namespace, self._ref.name, name, error)
            self._probes.note(name, error, wanted, blocks=True)
            return None
        self._probes.clear(name)
        if _has_class(made) or _is_bound(made):
            return "PerServer"
        if self._t_accepted is None:
            self._t_accepted = self._clock()
        if self._clock() < self._t_accepted + UNBOUND_S:
            return None
        try:
            self._delete(made)
        except ApiError as error:  # without the right to, it stays as long as the job, and no pod mounts it
            log.info("claim %s, which has no volume, was not deleted: %s", wanted["metadata"]["name"], error)
        return "NodeLocal"

    # --- making ---

    def claims(self, spec: JobSpec, status: JobStatus, storage: Storage | None, living: Collection[str]) -> list[Json]:
        """The claims without which the job does not start, and those that its `living` servers mount.

        Any other is made when its server starts (`claim_of`): a second name's, which most jobs never need, and one that
        takes another one's place.
        """
        if storage == "Shared" and spec.recovery.checkpoint.own_claim is not None:
            return [self._claim(spec, checkpoint_claim(self._ref))]
        if storage != "PerServer":
            return []
        generations = _generations(spec, status)
        first = {
            server_name(spec, shard, n) for shard in range(spec.servers.shards) for n in range(spec.servers.replicas)
        }
        return [
            self._claim(spec, server_claim(self._ref, server, generation))
            for server, generation in generations.items()
            if server in living or (server in first and generation == 0)
        ]

    def claim_of(self, spec: JobSpec, start: StartProcess) -> Json | None:
        """The claim that the process which starts mounts; None where it mounts none of the job's own."""
        if start.role != "server" or start.storage == "NodeLocal" or spec.recovery.checkpoint.own_claim is None:
            return None
        shared = start.storage == "Shared"
        return self._claim(
            spec, checkpoint_claim(self._ref) if shared else server_claim(self._ref, start.name, start.claim)
        )

    def _claim(self, spec: JobSpec, name: str) -> Json:
        claim = spec.recovery.checkpoint.own_claim
        assert claim is not None, "only a job with claims of its own names one"
        return checkpoints_claim(self._ref, name, claim.model_copy(update={"size": max(claim.size, self._expanded)}))

    # --- expanding ---

    @property
    def refusal(self) -> Wait | None:
        """Why the claims are not expanded, and when that may be asked for again."""
        return self._expansions.waits.get(_EXPANSION)

    def claim_bytes(self, spec: JobSpec, storage: Storage | None) -> int | None:
        """What each claim asks for; None where the job has none of its own."""
        claim = spec.recovery.checkpoint.own_claim
        return None if claim is None or storage in (None, "NodeLocal") else max(claim.size, self._expanded)

    def expand(self, spec: JobSpec, status: JobStatus, to_bytes: int) -> None:
        """Have every claim of the job ask for as much; `refusal` then says why one does not."""
        body = {"spec": {"resources": {"requests": {"storage": str(to_bytes)}}}}
        if status.storage == "PerServer":
            names = [server_claim(self._ref, server, n) for server, n in _generations(spec, status).items()]
        else:
            names = [checkpoint_claim(self._ref)]
        try:
            for name in names:
                found = find(self._api, self._ref, CLAIMS, KIND, name)
                # One that is missing is made with the new size when its server starts; no claim can shrink.
                if found is not None and _asks_for(found) < to_bytes:
                    self._api.patch(CORE, self._ref.namespace, CLAIMS, name, of_uid(body, found["metadata"]["uid"]))
        except ApiError as error:
            log.info("%s/%s: claim %s was not expanded: %s", self._ref.namespace, self._ref.name, name, error)
            self._expansions.note(_EXPANSION, error, {"kind": KIND})
            return
        self._expansions.clear(_EXPANSION)
        self._expanded = to_bytes

    # --- giving up ---

    def retire(self, status: JobStatus) -> None:
        """Delete the claims that servers gave up, where they hold nothing or the server has its state elsewhere."""
        members = {m.name for view in status.views.values() for m in view.members}
        given_up = {
            server_claim(self._ref, server, generation)
            for server, claim in status.claims.items()
            for generation in _needless(claim, is_member=server in members)
        } - self._retired
        if given_up <= self._seen and self._clock() < self._looked + RETIRE_S:
            return
        self._looked, self._seen = self._clock(), given_up
        for name in sorted(given_up):
            self._retire(name)

    def _retire(self, name: str) -> None:
        if name in self._retired:
            return
        try:
            found = self._api.get(CORE, self._ref.namespace, CLAIMS, name)
            if is_owned(found, self._ref):
                if not self._node_takes_part(found):
                    return
                self._delete(found)
                log.info("deleted %s/%s: its server has another claim", self._ref.namespace, name)
        except ApiError as error:
            if not error.not_found:
                log.info("claim %s is not deleted yet: %s", name, error.message)
                return
        self._retired.add(name)

    def _node_takes_part(self, claim: Json) -> bool:
        """Whether the volume can be removed where it lies; True as well where its node is not known, or may not be
        looked at."""
        node = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
        if node is None:
            return True
        try:
            found = self._api.get(CORE, None, "nodes", str(node))
        except ApiError as error:
            return error.not_found or error.code == 403
        conditions = (found.get("status") or {}).get("conditions") or ()
        return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)

    def _delete(self, claim: Json) -> None:
        meta = claim["metadata"]
        try:
            self._api.delete(CORE, self._ref.namespace, CLAIMS, meta["name"], meta["uid"])
        except ApiError as error:
            if not error.not_found:
                raise


def _generations(spec: JobSpec, status: JobStatus) -> dict[str, int]:
    """Of the claims of all servers' names, by name."""
    servers = [name for shard in range(spec.servers.shards) for name in server_names(spec, shard)]
    return {name: status.claims.get(name, ServerClaim()).generation for name in servers}


def _needless(claim: ServerClaim, is_member: bool) -> range:
    """Generations before this one that hold nothing, or nothing that its server has not elsewhere."""
    return range(0 if claim.used and is_member else claim.generation - claim.skipped, claim.generation)


def _asks_for(claim: Json) -> int:
    """Bytes; 0 where they are written in a way that we do not read."""
    try:
        return int(parse_quantity(claim["spec"]["resources"]["requests"]["storage"]))
    except (KeyError, ValueError):
        return 0


def _has_class(claim: Json) -> bool:
    return bool(claim["spec"].get("storageClassName"))


def _is_bound(claim: Json) -> bool:
    return (claim.get("status") or {}).get("phase") == "Bound"
