"""The operator's rights: what each is for, and what fails or degrades without it.

The chart's roles grant exactly these, the preflight asks the API server for the required ones, and
docs/how-to/secure.md shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from outlast.api.crd import GROUP, PLURAL

KEPT = ("list", "create", "update", "delete")  # of what is compared with what a job wants, and put right


@dataclass(frozen=True)
class Right:
    """`without` says what degrades; the operator does not start without a `required` one."""

    group: str
    resource: str  # with its part: trainingjobs/status
    verbs: tuple[str, ...]
    why: str
    without: str
    required: bool = False

    @property
    def key(self) -> str:
        """group/resource, as people and the chart's tests write it."""
        return f"{self.group}/{self.resource}".lstrip("/")


def _needed(group: str, resource: str, verbs: tuple[str, ...], why: str) -> Right:
    return Right(group, resource, verbs, why, "the operator stays unready", required=True)


# In each namespace with jobs.
IN_NAMESPACES = (
    _needed(GROUP, PLURAL, ("get", "list", "watch"), "find the jobs and watch for changes"),
    _needed(GROUP, f"{PLURAL}/status", ("update",), "record views and conditions by compare-and-swap"),
    Right(GROUP, PLURAL, ("delete",), "remove an ended job", "`runPolicy.ttlSecondsAfterFinished` has no effect"),
    _needed(
        "", "pods", ("get", "list", "watch", "create", "patch", "delete"),
        "start, label and end servers, workers, evaluator and Redis",
    ),
    _needed("", "services", ("get", "create"), "give servers and Redis stable names"),
    _needed("", "secrets", ("get", "create"), "make the job's token and Redis password, and present them"),
    _needed("", "persistentvolumeclaims", ("get", "create"), "make claims for checkpoints"),
    Right(
        "", "persistentvolumeclaims", ("patch", "delete"),
        "enlarge a claim that is too small for the model, remove one that a server gave up",
        "a claim that is too small stays too small; a claim that was given up stays until its job is deleted",
    ),
    Right(
        "policy", "poddisruptionbudgets", KEPT, "let a drain take one caught-up server of a shard at a time",
        "a drain may evict all servers of a shard at once",
    ),
    Right(
        "networking.k8s.io", "networkpolicies", KEPT, "open the job's ports where a namespace denies by default",
        "such a namespace needs policies of its own for jobs",
    ),
    Right("", "events", ("create", "patch"), "show the history in `kubectl describe`", "no Events; conditions remain"),
    Right(
        "", "events", ("list",), "report why a volume cannot be mounted or a claim cannot be bound",
        "such a wait is shown without its message",
    ),
)  # fmt: skip

# Only with rights in the whole cluster, never with `namespaces`.
IN_CLUSTER = (
    Right(
        "", "nodes", ("get",), "check whether the node of a claim that a server gave up can help to remove it",
        "such a claim is removed without the check, and may stay `Terminating` until its node is back",
    ),
)  # fmt: skip

# In the namespace of the Lease, on the Lease of the operator's own name; `create` cannot be limited to a name.
LEASE = _needed("coordination.k8s.io", "leases", ("create", "get", "update"), "decide which of several operators acts")


def table() -> list[str]:
    """The rights as a table for the docs."""
    lines = ["| resource | verbs | for | without it |", "|---|---|---|---|"]
    where = ((IN_NAMESPACES, ""), (IN_CLUSTER, " (whole cluster only)"), ((LEASE,), " (the operator's namespace)"))
    for rights, place in where:
        lines += [f"| `{r.key}`{place} | {', '.join(r.verbs)} | {r.why} | {r.without} |" for r in rights]
    return lines
