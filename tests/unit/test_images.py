"""What images/ decides: which packages an image gets, and what stands in for CUDA in the one without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
DOCKERFILES = [ROOT / "Dockerfile", IMAGES / "trainer" / "Dockerfile", IMAGES / "redis" / "Dockerfile"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


without_cuda = load("without_cuda")
install = load("install")  # imports the other


def test_the_operator_gets_no_torch_and_trainers_do() -> None:
    names = {
        image: {install.name_of(r) for r in install.requirements(image, ROOT / "pyproject.toml")}
        for image in ("operator", "cpu", "cuda")
    }
    assert "torch" not in names["operator"]
    assert names["cpu"] == names["cuda"] > {"torch", "torchvision", "numpy", "redis"}


def test_the_image_for_cpus_leaves_out_cuda_and_nothing_else() -> None:
    requires = importlib.metadata.requires("torch") or []
    names = {install.name_of(r) for r in install.but_cuda(requires)}
    assert {"filelock", "jinja2", "sympy", "typing-extensions"} <= names
    left_out = {install.name_of(r) for r in requires if "extra ==" not in r} - names
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in left_out)
    assert install.but_cuda(["torch>=2.5", "numpy>=1.26", "pytest; extra == 'test'"]) == ["numpy>=1.26"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_run_as_a_user_with_a_number_and_write_to_tmp_alone(dockerfile: Path) -> None:
    last = dockerfile.read_text().rpartition("\nFROM ")[2].splitlines()
    assert "USER 65532:65532" in last, "restricted Pod Security cannot tell whether a name is root's"
    assert "WORKDIR /tmp" in last
    copies = [line for line in last if line.startswith("COPY")]
    assert not copies or copies[-1] == "COPY --from=code /code /opt/outlast", "a change of code moves the last layer"


@pytest.fixture
def torch_with_cuda(tmp_path: Path) -> Path:
    """Site-packages with a torch whose libraries need two of NVIDIA's, with and without versions of symbols."""
    if not all(map(shutil.which, ("gcc", "as", "ld", "nm", "readelf"))):
        pytest.skip("needs gcc and binutils")
    lib = tmp_path / "site" / "torch" / "lib"
    lib.mkdir(parents=True)

    def library(name: str, code: str, *options: str) -> None:
        (tmp_path / "code.c").write_text(code)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", str(lib / name), str(tmp_path / "code.c"), *options], check=True
        )

    (tmp_path / "versions").write_text("libcudart.so.13 { cudaGetDeviceCount; };")
    script = f"-Wl,--version-script={tmp_path}/versions"
    library("libcudart.so.13", "int cudaGetDeviceCount(int *n) { return 0; }", "-Wl,-soname,libcudart.so.13", script)
    library("libnccl.so.2", "int ncclGetVersion(int *v) { return 0; }", "-Wl,-soname,libnccl.so.2")
    code = """
        __attribute__((section(".nv_fatbin"))) char kernels[4096] = "kernels";
        int cudaGetDeviceCount(int *); int ncclGetVersion(int *);
        int devices(void) { int n; return cudaGetDeviceCount(&n); }
        int nccl(void) { int n; return ncclGetVersion(&n); }
    """
    near = f"-Wl,-rpath,$ORIGIN,-L{lib}"
    library("libtorch_cuda.so", code, near, "-l:libcudart.so.13", "-l:libnccl.so.2")
    for name in ("libcudart.so.13", "libnccl.so.2"):
        (lib / name).unlink()
    for name in without_cuda.FOR_GPUS:
        library(name, "int unused;")
    for name in without_cuda.FOR_COMPILERS:
        (lib.parent / name).mkdir()
    return lib


# Loads a library and prints what its functions answer and how its kernels begin.
LOAD = """
import ctypes, sys
loaded = ctypes.CDLL(sys.argv[1])
print(loaded.devices(), loaded.nccl(), bytes((ctypes.c_char * 7).in_dll(loaded, "kernels")))
"""


def test_torch_does_without_nvidias_libraries(torch_with_cuda: Path) -> None:
    def load() -> subprocess.CompletedProcess[str]:
        """In a process of its own: one that has loaded the real torch has NVIDIA's libraries by these names."""
        library = str(torch_with_cuda / "libtorch_cuda.so")
        return subprocess.run([sys.executable, "-c", LOAD, library], capture_output=True, text=True)

    assert "libcudart.so.13: cannot open" in load().stderr
    without_cuda.main(str(torch_with_cuda.parents[1]))
    assert load().stdout == f"100 100 {bytes(7)!r}\n", "no device, and no kernels"
    assert sorted(path.name for path in torch_with_cuda.iterdir()) == [
        "libcuda_absent.so", "libcudart.so.13", "libnccl.so.2", "libtorch_cuda.so"
    ]  # fmt: skip


def test_a_torch_that_was_built_without_cuda_is_left_alone(tmp_path: Path) -> None:
    library = tmp_path / "torch" / "lib" / "libtorch_cpu.so"
    library.parent.mkdir(parents=True)
    library.write_text("as it was")
    without_cuda.main(str(tmp_path))
    assert [path.name for path in library.parent.iterdir()] == [library.name]
