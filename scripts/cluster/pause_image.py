"""Wrap the one static program `pause` into an image archive that containerd imports: no builder, no registry.

Usage: pause_image.py PROGRAM IMAGE ARCHIVE    The archive has the layout of the OCI image specification.
"""

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile


def add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def tar_of(name: str, content: bytes, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive, name, content, mode)
    return buffer.getvalue()


def main(program: str, image: str, path: str) -> None:
    with open(program, "rb") as file:
        layer = tar_of("pause", file.read(), 0o755)
    config = {
        "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
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
            "layers": [blob(gzip.compress(layer, mtime=0), "layer.v1.tar+gzip")],
        }
        described = blob(json.dumps(manifest).encode(), "manifest.v1+json")
        described["annotations"] = {"io.containerd.image.name": image}
        add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
