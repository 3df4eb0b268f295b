"""One job's loop over an API server in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_api import AtOnce, FakeApi

from outlast.api.view import Member, View
from outlast_operator.kubernetes.cluster.api import ApiError
from outlast_operator.kubernetes.cluster.cache import Cache
from outlast_operator.kubernetes.cluster.pools import Pools
from outlast_operator.kubernetes.job.loop import JobLoop
from outlast_operator.kubernetes.job.record import read_record
from outlast_operator.kubernetes.job.runtime import Tools
from outlast_operator.kubernetes.manifests.pods import Images

Json = dict[str, Any]
QUOTA = ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: team, used: pods=2, limited: pods=2')


class World:
    """One TrainingJob and one operator."""

    def __init__(self, **parts: Any) -> None:
        self.api = FakeApi()
        self.now = 1_700_000_000.0
        self.cache = Cache(lambda namespace, name: None)
        self.spec: Json = {
            "training": {"task": "a.b", "optimizer": {"lr": 0.1}, "stopAfter": {"updates": 10}},
            "recovery": {"strategy": "Chain"},
            **parts,
        }
        made = self.api.create("", "n", "trainingjobs", self._job())
        self.cache.put_job(made)
        self.leads = True
        self.tools = Tools(
            self.api, self.cache, Images("t", "r"), Pools(AtOnce(), AtOnce(), AtOnce()),  # type: ignore[arg-type]
            lambda: self.now, lambda: self.leads,
        )  # fmt: skip
        self.loop = JobLoop(self.tools, made)

    def _job(self) -> Json:
        meta = {"name": "mnist", "generation": 1}
        return {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "metadata": meta, "spec": self.spec}

    @property
    def job(self) -> Json:
        return self.api.objects["n", "trainingjobs", "mnist"]

    @property
    def status(self) -> Json:
        return self.job.get("status") or {}

    def edit(self, **parts: Any) -> None:
        """A user changes the spec."""
        job = self.api.get("", "n", "trainingjobs", "mnist")
        job["spec"] = {**job["spec"], **parts}
        job["metadata"]["generation"] += 1
        self.cache.put_job(self.api.replace("", "n", "trainingjobs", "mnist", job))

    def settle(self) -> None:
        """Turns until the loop would sleep."""
        for _ in range(20):
            if self.loop._turn() is not None:
                return
        pytest.fail("the loop does not come to rest")

    def refuse(self, plural: str, error: ApiError | None) -> None:
        """From now on, of this kind alone until the next call for another."""
        before = self.api.refuse
        self.api.refuse = lambda kind, body: error if kind == plural else before(kind, body)

    def serve(self) -> None:
        """As far as the record tells, servers have been in a view."""
        job = self.api.get("", "n", "trainingjobs", "mnist")
        known = read_record(job)
        view = View(0, 1, 0, (Member("server-0", "b0", "tcp:10.0.0.1:7070"),))
        status = replace(known.status, views={0: view})
        job["status"]["record"] = replace(known, status=status).to_text()
        self.cache.put_job(self.api.replace("", "n", "trainingjobs", "mnist", job, "status"))

    def condition(self, type_: str) -> Json:
        return next(c for c in self.status["conditions"] if c["type"] == type_)

    def events(self) -> list[str]:
        return [o["reason"] for (_, plural, _), o in self.api.objects.items() if plural == "events"]
