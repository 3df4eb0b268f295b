"""Make an installed torch do without NVIDIA's libraries, for machines without a GPU: `without_cuda.py SITE_PACKAGES`.

torch without CUDA is a build of its own, and PyPI has none for Linux on x86-64. The build that PyPI has computes on the
CPU all the same, but the loader wants each library of NVIDIA's that it names, though nothing calls them where no GPU
is. Here one small library stands under all their names. It defines the functions that torch lacks; each returns 100,
CUDA's code for "no device", so that torch.cuda.is_available() is False.

Does nothing to a torch that was built without CUDA. Needs binutils.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CUDA = "libtorch_cuda.so"
FOR_GPUS = ("libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")  # torch loads them when it first computes on one
FOR_COMPILERS = ("include", "share")
NVIDIAS = re.compile(r"(__)?(cu|nccl|nv)[a-zA-Z_]")  # functions of NVIDIA's libraries
RETURN = {"x86_64": "mov $100, %eax\nret\n", "aarch64": "mov w0, #100\nret\n"}  # cudaErrorNoDevice
STAND_IN = "libcuda_absent.so"
BLOCK = 1 << 20  # bytes


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def symbols(library: Path, kind: str) -> dict[str, str]:
    """Those that it defines, or that others must define for it (undefined) -> their version, or an empty word."""
    words = (line.split()[-2:] for line in output("nm", "-D", f"--{kind}-only", str(library)).splitlines())
    parts = (word.partition("@") for how, word in words if how != "w")
    return {name: version.strip("@") for name, _, version in parts}


def erase(library: Path, section: str) -> None:
    """Zero a section, so that it takes no space in an archive of the image: the code of GPUs is a third of torch."""
    found = re.search(rf" {re.escape(section)} +PROGBITS +\w+ (\w+) (\w+)", output("readelf", "-SW", str(library)))
    offset, size = (int(word, 16) for word in found.groups()) if found else (0, 0)
    with library.open("r+b") as file:
        file.seek(offset)
        for start in range(0, size, BLOCK):
            file.write(bytes(min(BLOCK, size - start)))


def not_found(library: Path) -> list[str]:
    """What it needs, or what that needs, and the loader does not find."""
    return re.findall(r"^\s*(\S+) => not found", output("ldd", str(library)), re.MULTILINE)


def stand_in(names: dict[str, str], into: Path) -> None:
    """A shared library that defines these functions, each with its version."""
    code = ['.section .note.GNU-stack,"",%progbits', ".text"]
    code += [f".globl {name}\n.type {name},%function\n{name}:" for name in names]
    code += [RETURN[platform.machine()]]
    versions = {version: [n for n in names if names[n] == version] for version in names.values()}
    script = [f"{version or 'CUDA_ABSENT'} {{ {'; '.join(members)}; }};" for version, members in versions.items()]
    assembly, listing, object_file = (into.with_suffix(suffix) for suffix in (".s", ".versions", ".o"))
    assembly.write_text("\n".join(code))
    listing.write_text("\n".join(script))
    output("as", "-o", str(object_file), str(assembly))
    output("ld", "-shared", "-soname", into.name, f"--version-script={listing}", "-o", str(into), str(object_file))
    for file in (assembly, listing, object_file):
        file.unlink()


def main(site: str) -> None:
    torch = Path(site, "torch")
    if not (torch / "lib" / CUDA).exists():
        return
    for folder in FOR_COMPILERS:
        shutil.rmtree(torch / folder)
    for name in FOR_GPUS:
        (torch / "lib" / name).unlink()
    erase(torch / "lib" / CUDA, ".nv_fatbin")
    kept = [*torch.glob("lib/*.so*"), *torch.glob("*.so"), *Path(site, "torchvision").glob("*.so")]
    defined = {name for library in kept for name in symbols(library, "defined")}
    lacking = {name: version for library in kept for name, version in symbols(library, "undefined").items()}
    names = {name: lacking[name] for name in sorted(lacking.keys() - defined) if NVIDIAS.match(name)}
    stand_in(names, torch / "lib" / STAND_IN)
    for name in {name for library in kept for name in not_found(library)}:
        if not (torch / "lib" / name).exists():
            (torch / "lib" / name).symlink_to(STAND_IN)


if __name__ == "__main__":
    main(*sys.argv[1:])
