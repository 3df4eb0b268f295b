"""The pod template of the tests' trainer pods: this machine's Python environment and code, mounted read-only.

    /opt/python          the interpreter's installation (sys.base_prefix)      command: /opt/python/bin/python3.x
    /opt/site-packages   the packages of .venv                                 PYTHONPATH, after the code
    /opt/code            trainer/ and operator/ of this repository
    /var/cache/e2e       parsed data sets, shared by all pods and written by the first
    /var/ledger          (with `ledger=`) what workers note of every gradient, for the audit of a run

Paths in the container are others than on the machine, on purpose: a home directory of mode 0700 on the way to an
interpreter (pyenv's) is then no obstacle to a pod's user. With OUTLAST_E2E_TRAINER_IMAGE that image is used instead,
and none of this is mounted; tests that read ledgers then find none.

Root makes the folders for the pods' user, and the node must be this machine, or see its files (kind: below /host).

`python tests/e2e/e2e_environment.py` prints the template.
"""

from __future__ import annotations

import compileall
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGE_VARIABLE = "OUTLAST_E2E_TRAINER_IMAGE"
USER_ID = 65532
DATASETS = Path("/usr/share/datasets")
WORK = Path(os.environ.get("OUTLAST_E2E_WORK", "/var/tmp/outlast-e2e"))  # on the node; removed at the end of a session

Json = dict[str, Any]


def prepare() -> None:
    """Make the folders that pods write to: they belong to the pods' user. And compile what they cannot."""
    for source in ("trainer", "operator"):
        compileall.compile_dir(str(ROOT / source), quiet=2)
    WORK.mkdir(mode=0o755, exist_ok=True)
    for name in ("cache", "cache/outlast", "ledger", "checkpoints"):
        folder = WORK / name
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, USER_ID, USER_ID)


def folder_of(job: str, kind: str) -> Path:
    """A folder of `kind` (ledger, checkpoints) on the node for one job, made for the pods' user."""
    folder = WORK / kind / job
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(folder, USER_ID, USER_ID)
    return folder


def template(image: str, *, prefix: str = "", ledger: Path | None = None, **container: Any) -> Json:
    """A PodTemplateSpec for servers or workers. `prefix`: where the node sees this machine's files (kind: /host)."""
    given = os.environ.get(IMAGE_VARIABLE)
    if given:
        return {"spec": {"containers": [{"name": "outlast", "image": given, **container}]}}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    mounts: list[tuple[str, Path, str, bool]] = [
        ("python", Path(sys.base_prefix), "/opt/python", True),
        ("packages", Path(sysconfig.get_path("purelib")), "/opt/site-packages", True),
        ("trainer", ROOT / "trainer", "/opt/code/trainer", True),
        ("operator", ROOT / "operator", "/opt/code/operator", True),
        ("cache", WORK / "cache", "/var/cache/e2e", False),
    ]
    if DATASETS.is_dir():
        mounts.append(("datasets", DATASETS, str(DATASETS), True))
    if ledger is not None:
        mounts.append(("ledger", ledger, "/var/ledger", False))
    env = {
        "PYTHONPATH": "/opt/code/trainer:/opt/code/operator:/opt/site-packages",
        "XDG_CACHE_HOME": "/var/cache/e2e",
        # An interpreter that is a shared library looks for it where it was installed.
        **({"LD_LIBRARY_PATH": "/opt/python/lib"} if sysconfig.get_config_var("Py_ENABLE_SHARED") else {}),
        **({"OUTLAST_LEDGER_DIR": "/var/ledger"} if ledger is not None else {}),
    }
    ours: Json = {
        "name": "outlast",
        "image": image,
        "command": [f"/opt/python/bin/python{version}", "-m", "outlast.pod"],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": [
            {"name": f"e2e-{name}", "mountPath": target, "readOnly": read_only} for name, _, target, read_only in mounts
        ],
        # Little: several jobs must find room on a node of two cores.
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        **container,
    }
    volumes = [
        {"name": f"e2e-{name}", "hostPath": {"path": f"{prefix}{source.resolve()}", "type": "Directory"}}
        for name, source, _, _ in mounts
    ]
    return {"spec": {"containers": [ours], "volumes": volumes}}


if __name__ == "__main__":
    prepare()
    sys.stdout.write(yaml.safe_dump(template("outlast/e2e-base:0.1.0"), sort_keys=False))
