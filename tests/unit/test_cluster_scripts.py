"""The parts of scripts/cluster that decide: which names pods have, and which pip settings an image build gets."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "cluster"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cluster_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("provider", ["kind", "debian"])
def test_a_provider_has_every_part_that_is_asked_of_it(provider: str) -> None:
    parts = ["prepare", "up", "is_up", "down", "status", "load", "restart"]
    text = "".join((SCRIPTS / name).read_text() for name in ("cluster.sh", "kind.sh"))
    for part in parts:
        assert text.count(f"\n{part}_{provider}() {{") == 1, f"{part}_{provider}"
    body = text.partition(f"\nis_up_{provider}() {{")[2].splitlines()[0]
    assert ("kind get clusters" if provider == "kind" else "is_running") in body


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name}, **fields}


@pytest.fixture
def dnsmasq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was sent to the process whose id stands in tmp_path/dnsmasq."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number)))
    (tmp_path / "dnsmasq").write_text("4711 99\n")
    return sent


def names_of(tmp_path: Path) -> Any:
    return load("dns").Names(tmp_path / "hosts", tmp_path / "dnsmasq")


def test_services_and_pods_get_their_names(tmp_path: Path, dnsmasq: list[tuple[int, int]]) -> None:
    names = names_of(tmp_path)
    addresses = [{"ip": "10.0.0.1", "hostname": "server-0"}, {"ip": "10.0.0.2"}]
    names.replace(
        "services",
        [
            named("redis", spec={"clusterIP": "10.96.0.7"}),
            named("servers", spec={"clusterIP": "None"}),
            named("elsewhere", spec={"type": "ExternalName"}),
        ],
    )
    names.replace("endpoints", [named("servers", subsets=[{"addresses": addresses}]), named("redis")])
    assert (tmp_path / "hosts").read_text().splitlines() == [
        "10.0.0.1 server-0.servers.ns.svc.cluster.local",
        "10.0.0.1 servers.ns.svc.cluster.local",
        "10.0.0.2 servers.ns.svc.cluster.local",
        "10.96.0.7 redis.ns.svc.cluster.local",
    ]
    assert dnsmasq[-1] == (4711, signal.SIGHUP)


def test_dnsmasq_reads_again_only_when_names_changed(tmp_path: Path, dnsmasq: list[tuple[int, int]]) -> None:
    names = names_of(tmp_path)
    service = named("redis", spec={"clusterIP": "10.96.0.7"})
    names.change("services", {"type": "ADDED", "object": service})
    names.change("services", {"type": "MODIFIED", "object": service})
    assert len(dnsmasq) == 1
    names.change("services", {"type": "DELETED", "object": service})
    assert len(dnsmasq) == 2
    assert (tmp_path / "hosts").read_text() == ""


@pytest.mark.parametrize(
    ("word", "mounted"),
    [
        ("/opt/wheels", "/opt/wheels"),
        ("file:///opt/index/simple", "/opt/index"),  # its pages point beside themselves
        ("https://example.org/simple", None),
    ],
)
def test_paths_of_pip_settings_are_mounted(word: str, mounted: str | None) -> None:
    assert load("pip_settings")._mounted(word) == mounted


def test_the_pause_image_is_whole(tmp_path: Path) -> None:
    program, archive = tmp_path / "pause", tmp_path / "pause.tar"
    program.write_bytes(b"\x7fELF")
    subprocess.run(
        [sys.executable, str(SCRIPTS / "pause_image.py"), str(program), "example/pause:1", str(archive)], check=True
    )
    with tarfile.open(archive) as tar:
        content = {m.name: f.read() for m in tar.getmembers() if (f := tar.extractfile(m)) is not None}
    described = json.loads(content["index.json"])["manifests"][0]
    assert described["annotations"]["io.containerd.image.name"] == "example/pause:1"
    manifest = json.loads(content["blobs/" + described["digest"].replace(":", "/")])
    for blob in (manifest["config"], *manifest["layers"]):
        assert len(content["blobs/" + blob["digest"].replace(":", "/")]) == blob["size"]


def test_a_file_that_says_the_same_is_not_touched(tmp_path: Path) -> None:
    """kube-proxy ends when its configuration is written anew, even with the same words."""
    path = tmp_path / "config.yaml"

    def put(text: str) -> int:
        subprocess.run(["bash", "-c", f". {SCRIPTS}/lib.sh; put {path}"], input=text, text=True, check=True)
        assert path.read_text() == text
        return path.stat().st_ino

    first = put("mode: iptables\n")
    touched = path.stat().st_mtime_ns
    assert put("mode: iptables\n") == first
    assert path.stat().st_mtime_ns == touched
    assert put("mode: ipvs\n") != first
    assert list(tmp_path.iterdir()) == [path]
