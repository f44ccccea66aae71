"""Which of SGLang's model files a zygote imports: those of the models that it will serve.

Its registry (0.5.23) imports nearly 300 classes of models when it is imported itself, a seventh of
a start. It can also leave models for later, and imports them all when asked for one that it lacks.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

REGISTRY = "sglang.srt.models.registry"
_LEFT_OUT = "SGLANG_DISABLED_MODEL_ARCHS"
#: With these the user chooses the files.
_USERS = (_LEFT_OUT, "SGLANG_EXTERNAL_MODEL_PACKAGE")


def import_registry(architectures: Collection[str]) -> None:
    """Import SGLang's registry with the files of `architectures`; with all if that is empty."""
    names = [] if any(map(os.environ.get, _USERS)) else others(_folder(), architectures)
    with _left_out(names):
        registry = importlib.import_module(REGISTRY)
    if names:
        registry.import_model_classes.cache_clear()
        registry.ModelRegistry._default_models_loaded = False


def others(folder: Path, architectures: Collection[str]) -> list[str]:
    """Return the files in `folder`, without suffix, that none of `architectures` needs.

    Drafts stand beside their target's file, under a longer name. Empty, so that all are imported,
    where a file was not found or nothing is asked for.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    needed: set[str] = set()
    for architecture in architectures:
        defined = re.compile(rf"^class {re.escape(architecture)}\b", re.M)
        files = [name for name, text in texts.items() if defined.search(text)]
        if not files:
            return []
        needed.update(name for name in texts if name.startswith(tuple(files)))
    return sorted(texts.keys() - needed) if needed else []


def _folder() -> Path:
    spec = find_spec(REGISTRY)
    return Path(str(spec and spec.origin)).parent


@contextlib.contextmanager
def _left_out(names: list[str]) -> Iterator[None]:
    if not names:
        yield
        return
    os.environ[_LEFT_OUT] = ",".join(names)
    try:
        yield
    finally:
        del os.environ[_LEFT_OUT]
