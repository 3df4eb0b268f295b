"""The images as they ship: what a new version moves, whose processes run in them, and that all pods run in them."""

from __future__ import annotations

import json
import tarfile

import pytest
from e2e_cluster import Cluster
from e2e_figures import Figures
from e2e_jobs import EVALUATED
from e2e_release import SYSTEM
from e2e_selection import every
from e2e_steps import StartJob, start_training

OURS = ("outlast/operator", "outlast/redis", "outlast/trainer")


@every
def test_a_new_version_moves_little_and_runs_as_no_user_of_the_node(cluster: Cluster, figures: Figures) -> None:
    if not cluster.images:
        pytest.skip("the images of this cluster were built elsewhere")
    for tag, name in (line.split() for line in cluster.images.splitlines()):
        with tarfile.open(cluster.tools.parent / "images" / name) as archive:

            def read(member: str, archive: tarfile.TarFile = archive) -> bytes:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()

            (manifest,) = json.loads(read("manifest.json"))
            sizes = [archive.getmember(layer).size / 1e6 for layer in manifest["Layers"]]
            assert json.loads(read(manifest["Config"]))["config"]["User"] == "65532:65532", tag
        if not tag.startswith("outlast/redis"):
            figures.number(f"{tag}: MB that a change of outlast moves", sizes[-1], "<=", 20)


def test_every_pod_runs_the_image_that_ships(cluster: Cluster, start_job: StartJob, version: str) -> None:
    job, _ = start_training(start_job, "Hybrid", training=EVALUATED)
    pods = [*job.pods(), *cluster.core.list_namespaced_pod(SYSTEM).items]
    images = {container.image for pod in pods for container in pod.spec.containers}
    assert images == {f"{name}:{version}" for name in OURS}
