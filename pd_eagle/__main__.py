"""`python -m pd_eagle`: the same as the command pd-eagle."""

from __future__ import annotations

import sys

from pd_eagle.cli import main

if __name__ == "__main__":
    sys.exit(main())
