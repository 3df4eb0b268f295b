"""Carry this machine's pip settings into an image build: `pip_settings.py FILE`.

Writes a pip.conf and prints the paths that it names, one a line, to be mounted. Paths that do not exist are left out;
so are constraints, which the image has itself.
"""

import re
import subprocess
import sys
from pathlib import Path

KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "cert", "timeout")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def main(target: str) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = {"cert": str(CERTIFICATES)} if CERTIFICATES.exists() else {}
    for scope, key, value in re.findall(r"^(:env:|global|install)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE):
        if key in KEYS:
            words = [word for word in value.split() if not _is_missing(word)]
            if words and (scope == ":env:" or key not in found or key == "cert"):
                found[key] = " ".join(words)
    Path(target).write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in found.items()))
    paths = {path for value in found.values() for word in value.split() if (path := _mounted(word))}
    print("\n".join(sorted(paths)))


def _path(word: str) -> str | None:
    path = word.removeprefix("file://")
    return path if path.startswith("/") else None


def _mounted(word: str) -> str | None:
    """What to mount for it. The pages of an index on disk may point beside themselves (`../../files/...`)."""
    path = _path(word)
    return str(Path(path).parent) if path and word.startswith("file:") else path


def _is_missing(word: str) -> bool:
    path = _path(word)
    return path is not None and not Path(path).exists()


if __name__ == "__main__":
    main(*sys.argv[1:])
