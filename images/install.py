"""What an image installs. Run by a Python that has pip.

    install.py list {operator|cpu|cuda} PYPROJECT                   prints the dependencies
    install.py {operator|cpu|cuda} PYTHON REQUIREMENTS [INDEX]      installs them into the environment of PYTHON

In the versions that the tests ran with. The image cpu gets none of NVIDIA's packages: its torch comes from INDEX, where
torch is built without CUDA; without an INDEX, from where pip finds one, and without_cuda.py makes it do without them.

The same packages give the same files, byte for byte, so that their layer moves once: caches of bytecode are made here,
for pods may not write them, and hold no time.
"""

import compileall
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import without_cuda

HERE = Path(__file__).parent
OF_CUDA = re.compile(r"(triton|nvidia-.*|cuda-.*)$")
ON_CUDA = ("torch", "torchvision")  # these depend on it


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def requirements(image: str, pyproject: Path) -> list[str]:
    project = tomllib.loads(pyproject.read_text())["project"]
    extra = "operator" if image == "operator" else "trainer"
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def but_cuda(requires: Iterable[str]) -> list[str]:
    """What a package needs by its own words, without its extras, CUDA, and what depends on that."""
    names = ((r, name_of(r)) for r in requires if "extra ==" not in r)
    return [r for r, name in names if not OF_CUDA.match(name) and name not in ON_CUDA]


def pip(python: str, *arguments: str) -> None:
    options = ["--no-cache-dir", "--no-compile", "--progress-bar=off", "-c", str(HERE / "constraints.txt")]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, *arguments], check=True)


def install_without_cuda(python: str, site: Path, wanted: list[str], index: list[str]) -> None:
    pip(python, "--no-deps", *index, *(r for r in wanted if name_of(r) in ON_CUDA))
    installed = importlib.metadata.distributions(path=[str(site)])
    pip(python, *but_cuda(wanted), *but_cuda(r for package in installed for r in package.requires or ()))
    without_cuda.main(str(site))


def main(image: str, python: str, listed: str, *indexes: str) -> None:
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.strip())
    wanted = Path(listed).read_text().splitlines()
    index = [f"--extra-index-url={url}" for url in indexes]
    if image == "cpu":
        install_without_cuda(python, site, wanted, index)
    else:
        pip(python, *index, *wanted)
    for tests in [folder for folder in site.glob("**/tests") if folder.is_dir()]:
        shutil.rmtree(tests, ignore_errors=True)  # gone, if in another one
    compileall.compile_dir(site, quiet=2, invalidation_mode=compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    if sys.argv[1] == "list":
        sys.stdout.write("".join(f"{line}\n" for line in requirements(sys.argv[2], Path(sys.argv[3]))))
    else:
        main(*sys.argv[1:])
