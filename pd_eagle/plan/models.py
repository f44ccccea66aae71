"""Finds the shape of a model: in `known_models`, a directory, or on the Hugging Face hub.

It reads config.json and file sizes, never weights, and knows nothing of devices.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import SettingsError
from pd_eagle.plan.known_models import CONFIGS, DEFAULT, EMBEDDED
from pd_eagle.plan.shapes import ModelShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Kind

__all__ = ["HUB_TIMEOUT_S", "Description", "ModelShape", "describe", "load_shape", "model_of"]

# huggingface_hub 1.33 tries five times, which takes 23 s where no name server answers.
HUB_TIMEOUT_S = 10.0
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = "wanted a directory with a config.json, or a Hugging Face name that the hub can give"


def model_of(settings: Settings, kind: Kind) -> str:
    """Return the name of the model to serve; with no GPU and none set, the embedded one's."""
    return settings.model_path or (DEFAULT if kind == "cuda" else EMBEDDED)


@dataclass(frozen=True, slots=True)
class Description:
    """A model's config.json, and the bytes of its weights if they are on disk."""

    name: str
    config: Mapping[str, Any]
    checkpoint_bytes: int | None = None

    @property
    def shape(self) -> ModelShape:
        """The numbers of the model; raises SettingsError where one is missing."""
        return shape_of(self.name, self.config, self.checkpoint_bytes)


def load_shape(
    name: str,
    variable: str = "MODEL_PATH",
    fetch: Callable[[str], Path] | None = None,
) -> ModelShape:
    """Return the shape of what `describe` finds."""
    return describe(name, variable, fetch).shape


def describe(
    name: str,
    variable: str = "MODEL_PATH",
    fetch: Callable[[str], Path] | None = None,
) -> Description:
    """Return the description of `name`: a known model, a directory, or a Hugging Face name.

    `fetch` brings the config.json of a Hugging Face name: by default from the local cache, else
    from the hub, within HUB_TIMEOUT_S. Raises SettingsError that names `variable`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        config = _config(folder / "config.json", name, variable)
        if (folder / "hf_quant_config.json").is_file():  # ModelOpt's, which SGLang reads as well
            config.setdefault("quantization_config", {"quant_method": "modelopt"})
        return Description(name, config, _on_disk(folder))
    if name in CONFIGS:
        return Description(name, CONFIGS[name])
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise SettingsError(f"{variable}={name!r}: no such directory; {_WANTED}")
    try:
        path = (fetch or _from_hub)(name)
    except OSError as error:
        raise SettingsError(f"{variable}={name!r}: {error}; {_WANTED}") from error
    return Description(name, _config(path, name, variable))


def _config(path: Path, name: str, variable: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{variable}={name!r}: {error}; {_WANTED}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{variable}={name!r}: {path} holds no JSON object")
    return found


def _on_disk(folder: Path) -> int | None:
    for index in sorted(folder.glob("*.index.json")):
        size = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        if size:
            return int(size)
    for pattern in ("*.safetensors", "*.bin"):
        if sizes := [path.stat().st_size for path in folder.glob(pattern)]:
            return sum(sizes)
    return None


def _from_hub(name: str) -> Path:
    """Return the cached or downloaded config.json; raise OSError within the timeout otherwise."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            answer.append(hf_hub_download(name, "config.json", etag_timeout=HUB_TIMEOUT_S))
        except Exception as error:  # carried to the asking thread, which maps it
            answer.append(error)

    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    if not answer:
        raise TimeoutError(f"the Hugging Face hub did not answer within {HUB_TIMEOUT_S:g} s")
    if isinstance(answer[0], Exception):
        raise OSError(" ".join(str(answer[0]).split())[:300]) from answer[0]
    return Path(answer[0])
