"""`python -m outlast_bench.promises.child PID MODULE:FUNCTION`: call it in a process that dies with its parent, PID."""

from __future__ import annotations

import importlib
import logging
import sys

from outlast.process.prctl import die_with_parent


def main() -> int:
    die_with_parent(int(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    module, _, function = sys.argv[2].partition(":")
    return int(getattr(importlib.import_module(module), function)())


if __name__ == "__main__":
    sys.exit(main())
