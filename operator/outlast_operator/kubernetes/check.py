"""Whether an operator serves a namespace: a suspended TrainingJob must be taken up. It has no pods, and is deleted."""

from __future__ import annotations

import random
import time
from typing import Any

from outlast_operator.kubernetes.client import Client, condition

Json = dict[str, Any]


def check_job(name: str) -> Json:
    """A job that needs no image, no node and no storage."""
    return {
        "apiVersion": "outlast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "suspend": True,
            "training": {"task": "outlast.tasks.synthetic", "stopAfter": {"updates": 1}},
            "recovery": {"strategy": "Checkpoint", "checkpoint": {"volume": {"emptyDir": {}}}},
        },
    }


def time_to_take_up(client: Client, timeout_s: float) -> float:
    """Seconds until an operator had recorded that the job is suspended.

    Raises `TimeoutError`, `JobError`, `ApiError`.
    """
    begin = time.monotonic()
    name = client.send(check_job(f"outlast-check-{random.randrange(16**6):06x}"))
    try:
        for status in client.watch(name, timeout_s):
            if condition(status, "Suspended") == "True":
                return time.monotonic() - begin
    except TimeoutError as error:
        raise TimeoutError(
            f"no operator wrote the status of a TrainingJob in namespace {client.namespace} within {timeout_s:g} s; "
            "is it among the operator's namespaces, and is the operator ready?"
        ) from error
    finally:
        client.delete(name)
    raise TimeoutError(
        f"TrainingJob {name} was deleted by another client before an operator wrote its status; check again"
    )
