"""The fields of a spec that say nothing about training: protection, limits of the run, prices.

The rules of spec_fields.py hold here too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from outlast.api.base import CURRENCY, LARGEST_COUNT, Amount, Count, FieldsModel, ObjectName

CleanPodPolicy = Literal["Running", "All", "None"]
NetworkPolicy = Literal["Managed", "None"]


class Tls(FieldsModel):
    secret_name: ObjectName | None = Field(
        default=None,
        description="Reserved for a Secret with tls.crt, tls.key and ca.crt: refused in a cluster and ignored in local "
        "runs in this release.",
    )


class Security(FieldsModel):
    tls: Tls = Field(
        default_factory=Tls, description="Reserved for encryption of the data path, which this release does not have."
    )
    network_policy: NetworkPolicy = Field(
        default="Managed",
        description="Managed: the operator makes a NetworkPolicy that opens the job's ports to its own pods and the "
        "operator alone. None: it makes none.",
    )


class RunPolicy(FieldsModel):
    backoff_limit: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = Field(
        default=6,
        description="Times in a row that one process may exit with an error of its own (not: be killed or lose its "
        "node) before the job fails.",
    )
    start_deadline_seconds: Count | None = Field(
        default=None,
        description="Seconds for which the job may wait to start (pods that are refused or find no node) before it "
        "fails with the reason; null for no limit.",
    )
    active_deadline_seconds: Count | None = Field(
        default=None, description="Seconds after startTime when the job fails if it is not complete; null for never."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | None = Field(
        default=None,
        description="Seconds after its end when the TrainingJob is deleted, and with it the checkpoints on claims "
        "that the operator made; null for never.",
    )
    clean_pod_policy: CleanPodPolicy = Field(
        default="Running", description="Pods to delete when the job ends: those still Running, All, or None."
    )


class Hourly(FieldsModel):
    server: Amount = Field(default=0.10, description="Price of one server for one hour.")
    worker: Amount = Field(default=2.50, description="Price of one worker for one hour.")


class Cost(FieldsModel):
    currency: Annotated[str, Field(pattern=CURRENCY)] = Field(
        default="USD", description="Currency of the prices, three letters."
    )
    hourly: Hourly = Field(default_factory=Hourly, description="Prices from which status.cost is computed.")
