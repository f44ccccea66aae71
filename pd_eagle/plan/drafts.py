"""The draft of a target: which one, whether it fits the target, and its token map.

It knows nothing of devices or placement, and imports no torch: of a token map it checks the format.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.errors import SettingsError
from pd_eagle.plan.known_models import DRAFTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.shapes import ModelShape

_VARIABLE = "SPECULATIVE_DRAFT_MODEL_PATH"
_MAP_VARIABLE = "SPECULATIVE_TOKEN_MAP"
_WANTED_MAP = "wanted a JSON list of token ids, or SGLang's .pt file of them"


def draft_path(settings: Settings, target: str) -> str | None:
    """Return the draft to load beside `target`, or None without speculative decoding.

    Raises SettingsError when none is set and none is known.
    """
    algorithm = settings.speculative_algorithm
    if algorithm is None:
        return None
    known = DRAFTS.get(target, {}).get(algorithm)
    found = settings.speculative_draft_model_path or known
    if found is None:
        raise SettingsError(
            f"{_VARIABLE} is unset: wanted the draft of {target} for {algorithm};"
            " none is known here"
        )
    return found


def check_draft(target: ModelShape, draft: ModelShape, algorithm: str) -> None:
    """Raise SettingsError with both numbers when `draft` was not made for `target`.

    A model that drafts for itself (its own MTP layers) fits by definition.
    """
    if draft.name == target.name:
        return
    problems = list(_mismatches(target, draft, algorithm))
    if problems:
        raise SettingsError(
            f"{_VARIABLE}={draft.name!r}: wanted a draft made for {target.name}: "
            + "; ".join(problems)
        )


def _mismatches(target: ModelShape, draft: ModelShape, algorithm: str) -> Iterator[str]:
    yield from _wrong_architecture(draft, algorithm)
    # SGLang 0.5.23 gives the draft the target's own embedding (srt/models/llama.py, `set_embed`
    # and `set_embed_and_head`), unless an EAGLE3 draft states another target_hidden_size.
    if draft.vocab_size != target.vocab_size:
        yield f"its vocabulary has {draft.vocab_size} tokens, the target's {target.vocab_size}"
    width = draft.hidden_size
    if algorithm == "EAGLE3":
        width = draft.target_hidden_size or draft.hidden_size
    if width != target.hidden_size:
        yield f"it reads hidden states {width} wide, the target's are {target.hidden_size}"
    if draft.draft_vocab_size and draft.draft_vocab_size > target.vocab_size:
        yield (
            f"its draft vocabulary has {draft.draft_vocab_size} tokens, the target's"
            f" {target.vocab_size}"
        )


def _wrong_architecture(draft: ModelShape, algorithm: str) -> Iterator[str]:
    # SGLang 0.5.23 names these classes …ForCausalLMEagle and …ForCausalLMEagle3 (and
    # Eagle3DeepseekV2ForCausalLM); its own MTP heads end in NextN or MTP.
    names = ", ".join(draft.architectures) or "none"
    third = any("Eagle3" in name for name in draft.architectures)
    eagle = any(word in names for word in ("Eagle", "NextN", "MTP"))
    if not eagle:
        yield f"its architecture {names} is no draft's"
    elif third != (algorithm == "EAGLE3"):
        yield f"its architecture {names} is not one of {algorithm}"


def check_token_map(path: str, vocab_size: int) -> None:
    """Raise SettingsError unless `path` is a JSON list of token ids or a torch file.

    The ids of a JSON list are checked against `vocab_size`; those of a torch file are not read.
    """
    file = Path(path)
    if not file.is_file():
        raise SettingsError(f"{_MAP_VARIABLE}={path!r}: no such file; {_WANTED_MAP}")
    if zipfile.is_zipfile(file):
        return  # torch.save has written zip files since 1.6
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{_MAP_VARIABLE}={path!r}: {error}; {_WANTED_MAP}") from error
    problem = _wrong_ids(ids, vocab_size)
    if problem:
        raise SettingsError(f"{_MAP_VARIABLE}={path!r}: {problem}; {_WANTED_MAP}")


def _wrong_ids(ids: object, vocab_size: int) -> str | None:
    if not isinstance(ids, list) or not ids:
        return "no list, or an empty one"
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            return f"{token!r} is no token id"
        if not 0 <= token < vocab_size:
            return f"token {token} is outside the vocabulary of {vocab_size}"
    if len(set(ids)) < len(ids):
        return f"{len(ids) - len(set(ids))} token ids stand in it twice"
    return None
