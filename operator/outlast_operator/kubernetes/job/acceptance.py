"""Which spec is in force: what the TrainingJob says, unless that is refused. Pure.

Rules. (1) A job that was never valid has no spec in force: it is Failed, with the words of `outlast validate`, until
its spec is mended. (2) Of a job that trains, a change that is refused (an immutable field, or a spec that is no longer
valid) is not taken up, and the rest of it goes on: a typing error must not end a training of days. It is said in the
condition SpecAccepted and in an event. (3) What was in force last is remembered in the status: of what may not change
it holds what the processes were started with. (4) The API server refuses the same changes beforehand, but for those in
opaque objects and that of the workers of a job in a queue: a rule of CEL sees no labels. Their number is taken up when
the job has been suspended, not while it is on its way there: a server that is replaced meanwhile still joins the old
group. (5) No template names the operator's own ServiceAccount: to the author of a job it would lend the operator's
rights. One that an older release accepted loses that account and its token, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast.api.errors import FieldError, SpecError
from outlast.api.immutable import changed_immutables, changed_while_queued, changed_while_running
from outlast.api.job import TrainingJob, read_spec
from outlast.api.spec import JobSpec
from outlast_operator.kubernetes.manifests.names import QUEUE_LABEL

Json = dict[str, Any]
_OF_THE_ACCOUNT = ("serviceAccountName", "serviceAccount", "automountServiceAccountToken")


@dataclass(frozen=True)
class Account:
    """A ServiceAccount."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Acceptance:
    """`spec` is None when none is in force; `refused` says why a part (or all) of what is written is not."""

    spec: JobSpec | None
    refused: tuple[FieldError, ...] = field(default=())
    warnings: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return "\n".join(str(error) for error in self.refused)


def accept(job: Json, accepted: JobSpec | None, operator: Account | None = None) -> Acceptance:
    """Judge a TrainingJob as it stands. `accepted`: the spec that was in force last, if there was one; `operator`: the
    operator's own ServiceAccount, where it has one."""
    lent = operator.name if operator is not None and operator.namespace == job["metadata"].get("namespace") else None
    try:
        written = TrainingJob.load({k: v for k, v in job.items() if k != "status"})
        errors = _not_in_a_cluster(written.spec, lent)
        if errors:
            raise SpecError(errors)
    except SpecError as error:
        return Acceptance(None if accepted is None else _keep(accepted, job, lent), tuple(error.errors))
    warnings = tuple(str(warning) for warning in written.warnings)
    if accepted is None:
        return Acceptance(written.spec, (), warnings)
    changed = changed_immutables(accepted, written.spec)
    if not (written.spec.suspend or _is_suspended(job)):
        changed += changed_while_running(accepted, written.spec)
    if _is_queued(job) and not _is_suspended(job):
        changed += changed_while_queued(accepted, written.spec)
    if not changed:
        return Acceptance(written.spec, (), warnings)
    return Acceptance(_restore(written.spec, accepted, changed, job, lent), tuple(changed), warnings)


def _is_queued(job: Json) -> bool:
    return QUEUE_LABEL in (job["metadata"].get("labels") or {})


def _is_suspended(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Suspended" and c.get("status") == "True" for c in conditions)


def _keep(accepted: JobSpec, job: Json, lent: str | None) -> JobSpec:
    """The accepted spec, with what of a spec that is not valid can be told apart: templates, and whether to pause.
    A template that is refused leaves the accepted one in force, without the operator's account."""
    raw, written = accepted.to_json(), job.get("spec") or {}
    for path, before in accepted.templates.items():
        *parents, leaf = path.split(".")
        template = _found(written, path.split("."))
        if isinstance(template, dict) and _refused_template(path, template, lent) is None:
            _at(raw, parents)[leaf] = template
        elif _lends_rights(before, lent):
            _at(raw, parents)[leaf] = _without_account(before)
    if isinstance(written.get("suspend"), bool):
        raw["suspend"] = written["suspend"]
    return read_spec(raw)


def _restore(written: JobSpec, accepted: JobSpec, changed: list[FieldError], job: Json, lent: str | None) -> JobSpec:
    """`written` with the accepted values of what may not change; else `accepted`, if the two do not fit together."""
    raw, before = written.to_json(), accepted.to_json()
    for error in changed:
        path = error.path.removeprefix("spec.").split(".")
        _at(raw, path[:-1])[path[-1]] = _at(before, path[:-1])[path[-1]]
    try:
        return read_spec(raw)
    except SpecError:
        return _keep(accepted, job, lent)


def _found(tree: Any, path: list[str]) -> Any:
    """What stands there in a document that may be anything; None where nothing does."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _at(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _not_in_a_cluster(spec: JobSpec, lent: str | None) -> list[FieldError]:
    """What no pod can do in this release: refused, for to ignore it would be to promise it."""
    errors = []
    if spec.security.tls.secret_name is not None:
        errors.append(
            FieldError(
                "spec.security.tls.secretName",
                spec.security.tls.secret_name,
                "encryption of the data path is not available yet; leave it out, and use a NetworkPolicy",
            )
        )
    url = spec.recovery.buffer.url
    if url is not None and url.startswith("unix:"):
        message = f'"{url}" is a socket of one machine, which pods cannot share; give redis://host:port'
        errors.append(FieldError("spec.recovery.buffer.url", url, message))
    refused = [_refused_template(path, template, lent) for path, template in spec.templates.items()]
    return [*errors, *(error for error in refused if error is not None)]


def _refused_template(path: str, template: Mapping[str, Any], lent: str | None) -> FieldError | None:
    """`lent`: the name of the ServiceAccount that no pod of this namespace may have."""
    if _containers(template) is None:
        return FieldError(f"spec.{path}", None, "is no PodTemplateSpec: spec.containers is not a list of objects")
    if not _lends_rights(template, lent):
        return None
    message = f"{lent} is the operator's own ServiceAccount, which no job may use; name another one, or none"
    return FieldError(f"spec.{path}.spec.serviceAccountName", lent, message)


def _lends_rights(template: Mapping[str, Any], lent: str | None) -> bool:
    return lent is not None and _containers(template) is not None and _account(template.get("spec") or {}) == lent


def _without_account(template: Mapping[str, Any]) -> Json:
    """Without its token, too, which would be that of the operator where the default account is the operator's. What
    mounts the volume of a projected one is refused, and waits in the API server's words."""
    spec = {k: v for k, v in template["spec"].items() if k not in _OF_THE_ACCOUNT}
    if isinstance(spec.get("volumes"), list):
        spec["volumes"] = [v for v in spec["volumes"] if not _takes_token({"volumes": [v]})]
    return {**template, "spec": spec}


def _account(pod_spec: Json) -> str | None:
    """Whose rights its pods get; None where they get no token (template.py)."""
    named = pod_spec.get("serviceAccountName") or pod_spec.get("serviceAccount")
    return str(named) if named else "default" if _takes_token(pod_spec) else None


def _takes_token(pod_spec: Json) -> bool:
    volumes = json.dumps(pod_spec.get("volumes") or [])
    return bool(pod_spec.get("automountServiceAccountToken")) or '"serviceAccountToken"' in volumes


def _containers(template: Mapping[str, Any]) -> list[Json] | None:
    spec = template.get("spec")
    if spec is None:
        return []
    containers = spec.get("containers") if isinstance(spec, dict) else ...
    if containers is None:
        return []
    well = isinstance(containers, list) and all(isinstance(c, dict) for c in containers)
    return containers if well else None  # type: ignore[return-value]
