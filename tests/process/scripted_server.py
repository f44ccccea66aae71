"""The real server in its own process with scripted engines (`-m tests.process.scripted_server`).

Everything but the engines and SGLang's OpenAI classes is what `server.py` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import httpx

from pd_eagle.plan.deployment import Stack
from tests import scripted

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType

    from tests.scripted import Script

#: The shape of a model small enough for any plan, as its config.json has it.
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": scripted.VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}


def tiny_model(folder: Path) -> Path:
    """Return a folder with a model's shape, and nothing else of it."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(TINY_CONFIG))
    return model


class Server:
    """A server process; leaving the block kills it if it still runs."""

    def __init__(
        self,
        folder: Path,
        prefill: Script | None = None,
        decode: Script | None = None,
        **settings: str,
    ) -> None:
        scripts = {"PREFILL_ENGINE_ARGS": prefill, "DECODE_ENGINE_ARGS": decode}
        self._environment = {
            **os.environ,
            "DEVICE": "cpu",
            "HATHORA_DEFAULT_PORT": "0",
            "MODEL_PATH": str(tiny_model(folder)),
            "SERVED_MODEL_NAME": "letters",
            "PD_MODE": "on",
            **{name: json.dumps(script.as_args()) for name, script in scripts.items() if script},
            **settings,
        }
        self.under: tuple[str, ...] = ()  # a command that runs the server
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self.under,
            sys.executable,
            "-m",
            "tests.process.scripted_server",
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.lines.append(line.decode().rstrip())
            self._more.set()
        self._ended = True
        self._more.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    async def line(self, pattern: str, number: int = 1) -> re.Match[str]:
        """Return the match of the first (or n-th) line of the log with `pattern`; waits for it."""
        while True:
            self._more.clear()
            matches = [match for line in self.lines if (match := re.search(pattern, line))]
            if len(matches) >= number:
                return matches[number - 1]
            assert not self._ended, f"no line with {pattern!r} in:\n{self.log}"
            await self._more.wait()

    async def url(self) -> str:
        return (await self.line(r"listening on (http://\S+),"))[1]

    async def ready(self) -> Self:
        await self.line("ready: serving letters")
        return self

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        code = await self._process.wait()
        await self._reading
        return code

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        async with httpx.AsyncClient(base_url=await self.url(), timeout=20) as client:
            return await client.request(method, path, json=body, headers=headers)

    async def complete(self, prompt: str, **more: Any) -> httpx.Response:
        return await self.request("POST", "/v1/completions", {"prompt": prompt, **more})

    @asynccontextmanager
    async def stream(self, prompt: str, max_tokens: int = 16) -> AsyncIterator[AsyncIterator[Any]]:
        """Give the events of a streamed completion; the last is "[DONE]"."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True}
        async with (
            httpx.AsyncClient(base_url=await self.url(), timeout=20) as client,
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            assert response.status_code == 200, await response.aread()
            yield _events(response)


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if data := line.removeprefix("data: "):
            yield data if data == "[DONE]" else json.loads(data)


if __name__ == "__main__":
    import uvicorn

    from pd_eagle.serve import main

    tick = uvicorn.Server.on_tick

    async def failing_tick(self: uvicorn.Server, counter: int) -> bool:
        if os.path.exists(os.environ["HTTP_FAILS_BY"]):  # noqa: ASYNC240 - a test's own
            raise RuntimeError("a test says that HTTP ends")
        return await tick(self, counter)

    if "HTTP_FAILS_BY" in os.environ:
        uvicorn.Server.on_tick = failing_tick  # type: ignore[method-assign]
    # A test may put another part in the place of one of the stack's.
    parts = {field.name: os.environ.get(f"STACK_{field.name.upper()}") for field in fields(Stack)}
    stack = replace(scripted.STACK, **{name: part for name, part in parts.items() if part})
    sys.exit(main(os.environ, stack))
