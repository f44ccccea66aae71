"""Prints the folder of the embedded model; what is being done goes to standard error."""

from __future__ import annotations

import sys

from pd_eagle import demo
from pd_eagle.errors import PdEagleError


def main() -> int:
    """Return 0 with the folder on standard output, or 1 with the reason on standard error."""
    try:
        folder = demo.model_dir(log=_tell)
    except PdEagleError as error:
        _tell(error.message)
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
