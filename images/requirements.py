"""What an image installs: `requirements.py {operator|cpu|cuda} PYPROJECT CONSTRAINTS PINS`.

Prints the requirements and writes the pins. The image cpu takes torch without CUDA from wherever there is one: its pins
leave torch, and what belongs to it, open.
"""

import re
import sys
import tomllib
from pathlib import Path

OF_CUDA = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)==", re.IGNORECASE)


def main(image: str, pyproject: str, constraints: str, pins: str) -> None:
    project = tomllib.loads(Path(pyproject).read_text())["project"]
    extra = "operator" if image == "operator" else "trainer"
    lines = Path(constraints).read_text().splitlines()
    Path(pins).write_text("\n".join(line for line in lines if image != "cpu" or not OF_CUDA.match(line)) + "\n")
    sys.stdout.write("\n".join(project["dependencies"] + project["optional-dependencies"][extra]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
