"""Wrap static programs into an image archive that containerd imports: no builder, no registry.

Usage: static_image.py ARCHIVE IMAGE USER ENTRYPOINT... -- FILE[:PATH]...

One layer holds the files, each at PATH, or at the root under its own name. The archive has the layout of the OCI image
specification, and the same input gives the same bytes.
"""

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile
from pathlib import Path

# What programs look up besides: their user's name, and a folder for temporary files.
ACCOUNTS = b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"


def add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def layer_of(files: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
        add(archive, "etc/passwd", ACCOUNTS)
        for item in files:
            source, _, target = item.partition(":")
            add(archive, (target or Path(source).name).lstrip("/"), Path(source).read_bytes(), 0o755)
    return buffer.getvalue()


def main(path: str, image: str, user: str, *rest: str) -> None:
    cut = rest.index("--")
    layer = layer_of(list(rest[cut + 1 :]))
    config = {
        "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
        "os": "linux",
        "config": {"Entrypoint": list(rest[:cut]), "User": user, "Env": ["PATH=/bin:/"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    with tarfile.open(path, "w") as archive:

        def blob(content: bytes, media_type: str) -> dict[str, object]:
            digest = hashlib.sha256(content).hexdigest()
            add(archive, f"blobs/sha256/{digest}", content)
            return {
                "mediaType": f"application/vnd.oci.image.{media_type}",
                "digest": f"sha256:{digest}",
                "size": len(content),
            }

        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(json.dumps(config).encode(), "config.v1+json"),
            "layers": [blob(gzip.compress(layer, 1, mtime=0), "layer.v1.tar+gzip")],
        }
        described = blob(json.dumps(manifest).encode(), "manifest.v1+json")
        described["annotations"] = {"io.containerd.image.name": image}
        add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
