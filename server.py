"""The standalone server: `python server.py`, all settings from the environment."""

import os
import sys

from pd_eagle.serve import main

if __name__ == "__main__":
    sys.exit(main(os.environ))
