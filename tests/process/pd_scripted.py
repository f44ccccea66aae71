"""`PDEngine` with scripted engines: `python -m tests.process.pd_scripted WHAT FOLDER` owns one.

As a script it starts an engine, does WHAT, says "there" and the pid of the child that it forked, if
any, and stays, or ends without a shutdown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from pd_eagle import pd_engine, tune_engine
from pd_eagle.pd_engine import PDEngine
from pd_eagle.plan import deployment as deployments
from tests import scripted
from tests.process.scripted_server import tiny_model
from tests.scripted import Act, Script, ids_of
from tests.unit.generate_input import GenerateInput

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Script(acts={"h": Act("hang", after=2), "s": Act(pause_s=0.01)})


class LetterTokenizer:
    """A token a letter; a chat is its contents, one after another."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": ids_of(text)}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: Any, **_: Any) -> dict[str, Any]:
        if isinstance(messages[0], list):
            return {"input_ids": [self.apply_chat_template(chat)["input_ids"] for chat in messages]}
        return self("".join(message["content"] for message in messages))


@contextlib.contextmanager
def scripted_stack() -> Iterator[None]:
    """Put the scripted stack in SGLang's place, for every `PDEngine` and every plan that is tuned
    in this process.
    """
    decide = partial(deployments.decide, stack=scripted.STACK)
    with (
        mock.patch.object(pd_engine, "deployments", SimpleNamespace(decide=decide)),
        mock.patch.object(tune_engine, "deployments", SimpleNamespace(decide=decide)),
        mock.patch.object(pd_engine, "load_tokenizer", return_value=LetterTokenizer()),
        mock.patch.object(pd_engine, "generate_input_class", return_value=GenerateInput),
    ):
        yield


def start(folder: Path, script: Script = SCRIPT, **more: Any) -> PDEngine:
    settings: dict[str, Any] = {
        "model_path": str(tiny_model(folder)),
        "device": "cpu",
        "pd_mode": "on",
        "served_model_name": "letters",
        "decode_engine_args": script.as_args(),
    }
    return PDEngine(**settings | more)


def _main(what: str, folder: Path) -> None:
    engine = start(folder)
    child = os.fork() if what == "fork" else None
    if child == 0:
        signal.pause()
    sys.stdout.write(f"there {child}\n")
    sys.stdout.flush()
    if what != "end":
        signal.pause()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)  # what engines say is logged
    assert engine.health()["status"] == "ready"


if __name__ == "__main__":
    with scripted_stack():
        _main(sys.argv[1], Path(sys.argv[2]))
