"""The fields of a spec that say nothing about training: protection, limits of the run, prices.

The rules of spec_fields.py hold here too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from outlast.api.base import CURRENCY, LARGEST_COUNT, Amount, Count, FieldsModel, ObjectName

CleanPodPolicy = Literal["Running", "All", "None"]


class Tls(FieldsModel):
    secret_name: ObjectName | None = Field(
        default=None, description="Secret with tls.crt, tls.key and ca.crt for the data path; null for no TLS."
    )


class Security(FieldsModel):
    tls: Tls = Field(default_factory=Tls, description="Encryption of what travels between workers and servers.")


class RunPolicy(FieldsModel):
    backoff_limit: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = Field(
        default=6,
        description="Times in a row that one process may exit with an error of its own (not: be killed or lose its "
        "node) before the job fails.",
    )
    active_deadline_seconds: Count | None = Field(
        default=None, description="Seconds after startTime when the job fails if it is not complete; null for never."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | None = Field(
        default=None,
        description="Seconds after its end when the TrainingJob is deleted, and with it the checkpoints on a claim "
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
    hourly: Hourly = Field(default_factory=Hourly, description="Prices by which status.cost is reckoned.")
