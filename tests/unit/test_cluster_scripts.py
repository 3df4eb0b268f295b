"""The parts of scripts/cluster that need no root: what is built, what images hold, which pip settings a build gets."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "cluster"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cluster_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script after the cluster's functions were read."""
    sources = "".join(f". {SCRIPTS}/{name}.sh; " for name in ("lib", "programs", "store"))
    return subprocess.run(
        ["bash", "-euc", sources + script], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def output(script: str, **environment: str) -> str:
    done = bash(script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("provider", ["kind", "modules"])
def test_a_provider_has_every_part_that_is_asked_of_it(provider: str) -> None:
    text = "".join(path.read_text() for path in SCRIPTS.glob("*.sh"))
    for part in ("prepare", "up", "is_up", "down", "status", "load", "restart"):
        assert text.count(f"\n{part}_{provider}() {{") == 1, f"{part}_{provider}"


PROGRAMS = sorted(path.name for path in (SCRIPTS / "programs").iterdir() if path.is_dir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_pinned_and_names_what_to_build(program: str) -> None:
    folder = SCRIPTS / "programs" / program
    lines = output(f"version_of {program}; packages_of {program}").splitlines()
    assert lines[0].startswith("v")
    assert len(lines) > 1
    for package in lines[1:]:
        if package == ".":
            assert (folder / "main.go").exists()
        else:
            assert any(package.startswith(module) for module in (folder / "go.mod").read_text().split())
            assert (folder / "go.sum").stat().st_size > 0


def test_what_a_program_is_made_of_decides_where_its_build_lies(tmp_path: Path) -> None:
    shutil.copytree(SCRIPTS / "programs" / "etcd", tmp_path / "etcd")

    def folder() -> str:
        return output(f"PROGRAMS={tmp_path}; folder_of etcd")

    first = folder()
    assert Path(first).name.startswith("etcd-v3.")
    assert folder() == first
    for name in ("go.mod", "go.sum", "main.go"):
        with (tmp_path / "etcd" / name).open("a") as file:
            file.write("\n")
        assert folder() != first
        first = folder()


def test_a_release_is_chosen_by_its_number() -> None:
    assert output("kubernetes_program", OUTLAST_KUBERNETES="") == "kubernetes"
    assert output("kubernetes_program", OUTLAST_KUBERNETES="1.30") == "kubernetes-oldest"
    refused = bash("kubernetes_program", OUTLAST_KUBERNETES="1.3")
    assert refused.returncode != 0
    assert "name one" in refused.stderr


def test_a_node_gets_blobs_and_layers_as_links_and_databases_as_copies(tmp_path: Path) -> None:
    root, node = tmp_path / "store" / "root", tmp_path / "node"
    snapshotter = "io.containerd.snapshotter.v1.overlayfs"
    (root / snapshotter / "snapshots" / "1" / "fs").mkdir(parents=True)
    (root / snapshotter / "snapshots" / "1" / "fs" / "passwd.db").write_text("part of an image")
    (root / snapshotter / "metadata.db").write_text("layers")
    (root / "content").mkdir()
    (root / "content" / "blob").write_text("blob")
    (root / "meta").mkdir()
    (root / "meta" / "meta.db").write_text("images")
    (tmp_path / "store" / "archives").mkdir()
    (tmp_path / "store" / "archives" / "redis.tar").touch()
    node.mkdir()
    output(f"STORE={tmp_path}/store; link_store {node}")
    made = node / "containerd"
    assert (made / "content" / "blob").samefile(root / "content" / "blob")
    assert (made / snapshotter / "snapshots" / "1").is_symlink()
    assert (made / snapshotter / "snapshots" / "1" / "fs" / "passwd.db").read_text() == "part of an image"
    for database in ("meta/meta.db", f"{snapshotter}/metadata.db"):
        assert not (made / database).samefile(root / database)
        assert (made / database).read_text() == (root / database).read_text()
    assert (node / "images" / "redis.tar").exists()


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


def test_an_image_of_static_programs_is_whole(tmp_path: Path) -> None:
    program, archive = tmp_path / "server", tmp_path / "server.tar"
    program.write_bytes(b"\x7fELF")
    arguments = [str(archive), "example/server:1", "1:1", "/server", "run", "--", str(program), f"{program}:/bin/sh"]
    subprocess.run([sys.executable, str(SCRIPTS / "static_image.py"), *arguments], check=True)
    with tarfile.open(archive) as tar:
        content = {m.name: f.read() for m in tar.getmembers() if (f := tar.extractfile(m)) is not None}
    described = json.loads(content["index.json"])["manifests"][0]
    assert described["annotations"]["io.containerd.image.name"] == "example/server:1"
    manifest = json.loads(content["blobs/" + described["digest"].replace(":", "/")])
    for blob in (manifest["config"], *manifest["layers"]):
        assert len(content["blobs/" + blob["digest"].replace(":", "/")]) == blob["size"]
    config = json.loads(content["blobs/" + manifest["config"]["digest"].replace(":", "/")])["config"]
    assert (config["Entrypoint"], config["User"]) == (["/server", "run"], "1:1")
    layer = content["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert {m.name: oct(m.mode) for m in tar.getmembers() if m.isfile()} == {
            "etc/passwd": "0o644", "server": "0o755", "bin/sh": "0o755"
        }  # fmt: skip
