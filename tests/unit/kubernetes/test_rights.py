"""The table of the operator's rights holds each right that its code uses, and none that it does not.

Requests are found in the source: calls of `Api`'s methods, whose group and plural are constants of their module. The
chart's tests hold the roles to the same table.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import outlast_operator.kubernetes
from outlast.api.crd import GROUP, PLURAL
from outlast.api.job import read_spec
from outlast_operator.kubernetes.job.dependents import Dependents
from outlast_operator.kubernetes.job.storage import CLAIMS
from outlast_operator.kubernetes.manifests.names import JobRef
from outlast_operator.kubernetes.rights import IN_CLUSTER, IN_NAMESPACES, LEASE

PACKAGE = Path(outlast_operator.kubernetes.__file__).parent
VERBS = {
    "get": "get", "list": "list", "create": "create", "replace": "update", "patch": "patch", "apply": "patch",
    "delete": "delete",
}  # fmt: skip
WITH_OTHER_RIGHTS = {
    "client.py",  # the user's
    "crd_update.py",  # the hook's
}
OF_EVERYBODY = "authorization.k8s.io/selfsubjectaccessreviews"
WATCHED = {f"{GROUP}/{PLURAL}", "pods"}  # handlers.make_registry
Right = tuple[str, str]  # group/resource, verb


def test_each_right_is_used_and_each_use_has_its_right() -> None:
    used = {right for path in PACKAGE.rglob("*.py") if path.name not in WITH_OTHER_RIGHTS for right in requests(path)}
    used |= {(resource, verb) for resource in WATCHED for verb in ("list", "watch")}
    granted = {(right.key, verb) for right in (*IN_NAMESPACES, *IN_CLUSTER, LEASE) for verb in right.verbs}
    assert used - {(OF_EVERYBODY, "create")} == granted


def requests(path: Path) -> Iterator[Right]:
    name = ".".join(("outlast_operator.kubernetes", *path.relative_to(PACKAGE).with_suffix("").parts))
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS):
            continue
        if ast.unparse(node.func.value).endswith("api"):
            yield from rights_of(name, node, VERBS[node.func.attr])


def rights_of(module: str, call: ast.Call, verb: str) -> Iterator[Right]:
    constants = vars(importlib.import_module(module))
    group = eval(ast.unparse(call.args[0]), constants)
    plural = ast.unparse(call.args[2])
    plurals = dependents() if plural == "plural" else {str(eval(plural, constants))}
    part = f"/{ast.literal_eval(call.args[5])}" if verb == "update" and len(call.args) > 5 else ""
    for resource in plurals:
        yield f"{group.removeprefix('apis/').rpartition('/')[0].removeprefix('api')}/{resource}{part}".lstrip("/"), verb


def dependents() -> set[str]:
    """What Dependents looks for or makes: of all that, requests are made in one place."""
    training = {"task": "a.b", "stopAfter": {"updates": 1}}
    spec = read_spec({"training": training, "recovery": {"strategy": "Stateless"}})
    made = Dependents(None, JobRef("mnist", "n", "uid"), lambda: 0.0)  # type: ignore[arg-type]
    return {plural for plural, _ in made._wanted(spec)} | {CLAIMS}
