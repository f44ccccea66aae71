"""The scripted engine: the one fake of the tests, an `Engine` that plays what its arguments say.

It runs in real worker processes through the factory "tests.scripted:start". Its answers follow from
all tokens before them, one letter a token, so that a resumed answer can be told from a fresh one.
A decode engine gets the prompt from the prefill engine of the same room, over a socket, and waits
for ever when that one is gone, as SGLang's does for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pd_eagle.errors import EngineError, InvalidRequest, ModelNotFound, StartFailed
from pd_eagle.messages import Delta, EngineInfo, Event, Failed, Load, Request, new_rid
from pd_eagle.plan.deployment import Stack
from pd_eagle.workers.run_folder import instance_id
from tests.process.processes import MARK

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

    from pd_eagle.messages import Bootstrap, Submit
    from pd_eagle.requests.service import Service

FACTORY = "tests.scripted:start"
PRELOAD = "tests.scripted:preload"
PRELOAD_WITH_THREAD = "tests.scripted:preload_with_thread"
PRELOAD_FOR_EVER = "tests.scripted:preload_for_ever"
PRELOAD_FAILS = "tests.scripted:preload_fails"
PRELOAD_BREAKS_WORKERS = "tests.scripted:preload_breaks_workers"
STACK = Stack(FACTORY, PRELOAD, "tests.scripted:ScriptedOpenAI")

VOCAB_SIZE = 256
DEFAULT_NEW_TOKENS = 16


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the engine does with a request: `after` tokens of the answer, then `then`.

    `pause_s` is between tokens; `burst` tokens make one step. The first `skip` requests are simply
    answered. `no_transfer` is a decode engine that never fetches the KV; `crash` is a death of the
    engine's own making, `die` one by a signal from outside; `spin` keeps a scheduler busy for ever.
    """

    then: Literal[
        "finish",
        "hang",
        "fail",
        "raise",
        "die",
        "exit",
        "crash",
        "spin",
        "scheduler_dies",
        "deaf",
        "no_transfer",
    ] = "finish"
    after: int = 0
    pause_s: float = 0.0
    burst: int = 1
    skip: int = 0
    code: str = EngineError.code


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the engine behaves. `acts` are keyed by the first character of a prompt.

    `hang` in `start` is a start that never ends; `schedulers` is how many children it forks;
    `shared_memory` is left behind, as SGLang's engines leave it.
    """

    start: Literal["ready", "raise", "fail", "exit", "die", "hang"] = "ready"
    shutdown: Literal["end", "hang"] = "end"
    last_words: list[str] = []
    schedulers: int = 0
    shared_memory: bool = False
    max_total_tokens: int = 4096
    context_length: int = 1024
    acts: dict[str, Act] = {}
    load: Load | None = None

    def as_args(self) -> dict[str, Any]:
        """Return what must be among the engine's arguments."""
        return {"script": msgspec.to_builtins(self)}


def ids_of(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def continuation(ids: Sequence[int]) -> Iterator[int]:
    """Yield the tokens that follow `ids`: each depends on all before it."""
    state = 7
    for token in ids:
        state = _mix(state, token)
    while True:
        token = ord("a") + state % 26
        yield token
        state = _mix(state, token)


def _mix(state: int, token: int) -> int:
    return (state * 31 + token + state // 26) % 2**31


def answer_to(prompt: str, new_tokens: int = DEFAULT_NEW_TOKENS) -> str:
    """Return the text that a scripted engine answers to `prompt`."""
    return "".join(map(chr, itertools.islice(continuation(ids_of(prompt)), new_tokens)))


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


# --- the steps that a zygote or a worker calls by name


def preload(argument: Any) -> None:
    """Prepare a zygote: what is to be imported has been imported with this module."""


def preload_with_thread(argument: Any) -> None:
    """Prepare a zygote that must not be forked."""
    threading.Thread(target=signal.pause, daemon=True).start()


def preload_for_ever(argument: str) -> None:
    """Prepare a zygote for ever; the path in `argument`, if any, gets a word at its begin."""
    if argument and isinstance(argument, str):
        Path(argument).write_text("preparing")
    sys.stderr.write("preparing for ever\n")
    while True:
        signal.pause()


def preload_breaks_workers(argument: Any) -> None:
    """Prepare a zygote whose children fail before they are workers."""
    from pd_eagle.workers import worker_main

    def run(*_: object, **__: object) -> None:
        raise OSError("the script says that a worker cannot begin")

    worker_main.run = run


def preload_fails(argument: Any) -> None:
    """Fail to prepare a zygote."""
    raise ImportError("the script says that something is not installed")


def start(engine_args: Mapping[str, Any], *, fork: bool) -> ScriptedEngine:
    """Start the engine that `engine_args["script"]` describes, or fail as it says."""
    script = msgspec.convert(engine_args.get("script", {}), Script)
    for words in script.last_words:
        say(words)
    if script.shared_memory:
        name = instance_id(Path(os.environ["TMPDIR"]))
        Path(f"/dev/shm/sglang_loads_{name}_{os.environ[MARK]}.shm").touch()
    match script.start:
        case "raise":
            raise RuntimeError("the script says that the engine cannot start")
        case "fail":
            raise StartFailed("a process of the engine failed while it was starting")
        case "exit":
            os._exit(7)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            say("starting for ever")
            signal.pause()
    return ScriptedEngine(engine_args, script)


class ScriptedEngine:
    """An `Engine` that plays `script`; it says what it does on its standard output."""

    def __init__(self, engine_args: Mapping[str, Any], script: Script) -> None:
        self._script = script
        self._role: str = engine_args.get("disaggregation_mode", "unified")
        self._running = 0
        self._silent_since = 0.0
        self._seen: Counter[str] = Counter()
        self._schedulers = [_scheduler() for _ in range(script.schedulers)]
        self._loop = asyncio.new_event_loop()
        self._rooms = _Rooms()
        if self._role == "prefill":
            path = _meeting_place(engine_args["disaggregation_bootstrap_port"])
            self._loop.run_until_complete(self._rooms.open(path))
        self.info = EngineInfo(
            pid=os.getpid(),
            scheduler_pids=self._schedulers,
            max_total_tokens=script.max_total_tokens,
            context_length=script.context_length,
            vocab_size=VOCAB_SIZE,
        )

    def event_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def control(self, name: str, arguments: dict[str, Any]) -> Any:
        say(f"{name} {arguments}")
        match name:
            case "flush_cache":
                idle = self._running == 0
                return {"success": idle, "message": "" if idle else "requests are running"}
            case "get_server_info":
                return {"model_path": "letters", "internal_states": [{"running": self._running}]}
            case "stop_profile":
                raise RuntimeError("no profile was started")
            case _:
                return object() if arguments.get("output_dir") == "/unsendable" else None

    def load(self) -> Load | None:
        at = self._silent_since or time.time()
        return self._script.load or Load(snapshot_at=at, running=self._running)

    def shutdown(self) -> None:
        for pid in self._schedulers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        say("shut down")
        if self._script.shutdown == "hang":
            signal.pause()

    async def generate(self, submit: Submit) -> AsyncGenerator[Event, None]:
        request = submit.request
        self._running += 1
        say(f"got {request.rid}")
        try:
            async with aclosing(self._play(request, submit.bootstrap)) as events:
                async for event in events:
                    yield event
                    # The frame leaves before the next step: what was sent before a death arrives.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            say(f"aborted {request.rid}")
            raise
        finally:
            self._running -= 1

    async def _play(
        self, request: Request, bootstrap: Bootstrap | None
    ) -> AsyncGenerator[Event, None]:
        act = self._act(chr(request.input_ids[0]))
        if self._role == "prefill":
            assert bootstrap is not None
            if act.then != "finish":
                yield await self._end(act, request.rid)
                return
            await self._rooms.hand_over(bootstrap.room, request.input_ids)
            yield _prefilled(request)
            return
        ids = request.input_ids
        if self._role == "decode":
            assert bootstrap is not None
            if act.then == "no_transfer":
                yield await self._end(act, request.rid)
            ids = await _fetch(_meeting_place(bootstrap.port), bootstrap.room)
        for delta in _steps(request, ids, act):
            await asyncio.sleep(act.pause_s)
            yield delta
        if act.then != "finish":
            yield await self._end(act, request.rid)

    def _act(self, first: str) -> Act:
        act = self._script.acts.get(first, Act())
        self._seen[first] += 1
        return Act() if self._seen[first] <= act.skip else act

    async def _end(self, act: Act, rid: str) -> Event:
        say(f"{act.then} {rid}")
        match act.then:
            case "fail":
                return Failed(rid, act.code, "the script says so")
            case "raise":
                raise ZeroDivisionError("the script says so")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(9)
            case "crash":
                say("Scheduler hit an exception: Traceback (most recent call last):")
                say(f"IndexError: the script says that {rid} is too much")
                os._exit(1)
            case "spin":
                os.kill(self._schedulers[0], signal.SIGUSR1)
                self._silent_since = time.time()
            case "scheduler_dies":
                os.kill(self._schedulers[0], signal.SIGKILL)
            case "deaf":
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
        await asyncio.Event().wait()
        raise AssertionError("nothing wakes it")


def _scheduler() -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGUSR1, _spin)
        while True:
            signal.pause()
    return pid


def _spin(*_: object) -> None:
    while True:
        pass


def _steps(request: Request, ids: list[int], act: Act) -> Iterator[Delta]:
    wanted = request.sampling_params.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    count = wanted if act.then == "finish" else min(act.after, wanted)
    tokens = continuation(ids)
    for done in range(0, count, act.burst):
        step = list(itertools.islice(tokens, min(act.burst, count - done)))
        yield _delta(request, done, step, finished=done + len(step) == wanted)


def _delta(request: Request, done: int, step: list[int], *, finished: bool) -> Delta:
    meta: dict[str, Any] = {"completion_tokens": done + len(step)}
    if done == 0:
        meta |= {"id": request.rid, "prompt_tokens": len(request.input_ids), "cached_tokens": 0}
        meta["finish_reason"] = None
    if request.options.return_logprob:
        meta["output_token_logprobs"] = [[-0.5, token, None] for token in step]
    if finished:
        meta["finish_reason"] = {"type": "length", "length": done + len(step)}
    return Delta(request.rid, "".join(map(chr, step)), step, meta, finished)


def _prefilled(request: Request) -> Delta:
    first = next(continuation(request.input_ids))
    meta: dict[str, Any] = {"finish_reason": {"type": "length", "length": 0}}
    if request.options.return_logprob:
        meta["input_token_logprobs"] = [[-1.0, token, None] for token in request.input_ids]
    return Delta(request.rid, chr(first), [first], meta, finished=True)


# --- where the halves of one request meet


def _meeting_place(port: int) -> Path:
    # A worker's own folder is inside the plan's; the port is a name here, nothing listens on it.
    return Path(os.environ["TMPDIR"]).parent / f"{port}.rooms"


class _Rooms:
    """The prefill side: holds the prompt of each room until decode has taken it."""

    def __init__(self) -> None:
        self._filled: defaultdict[int, asyncio.Queue[list[int]]] = defaultdict(asyncio.Queue)
        self._taken: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def open(self, path: Path) -> None:
        await asyncio.start_unix_server(self._serve, path)

    async def hand_over(self, room: int, ids: list[int]) -> None:
        self._filled[room].put_nowait(ids)
        try:
            await self._taken[room].wait()
        finally:
            del self._filled[room], self._taken[room]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = int(await reader.readline())
        ids = await self._filled[room].get()
        writer.write(json.dumps(ids).encode() + b"\n")
        await writer.drain()
        self._taken[room].set()
        writer.close()


async def _fetch(path: Path, room: int) -> list[int]:
    line = b""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"{room}\n".encode())
        try:
            line = await reader.readline()
        finally:
            writer.close()
    if not line:
        say("nobody hands the KV over")
        await asyncio.Event().wait()  # as SGLang: nobody tells decode, so it waits
    ids: list[int] = json.loads(line)
    return ids


# --- an OpenAI layer without SGLang's templates


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The request that `ScriptedOpenAI` takes."""

    prompt: str
    model: str = "default"
    max_tokens: int = DEFAULT_NEW_TOKENS
    stream: bool = False
    timeout: float | None = None


class ScriptedOpenAI:
    """The OpenAI layer of a scripted deployment: a prompt of letters, an answer of letters."""

    context_length = 1024
    tool_call_parser = None
    root, created = "/models/letters", 1

    def __init__(self, service: Service, engine_args: Mapping[str, Any], *_: object) -> None:
        self.model: str = engine_args["served_model_name"]
        self._service = service

    def detokenize(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def abort(self, rid: str | None) -> None:
        raise AssertionError("nobody asks for it here")

    def model_info(self) -> dict[str, Any]:
        return {"model_path": self.model}

    def schemas(self) -> dict[str, Any]:
        return {"chat": {"type": "object"}}

    async def parse(self, endpoint: str, body: bytes, http: object) -> Body:
        try:
            request = msgspec.json.decode(body, type=Body)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(str(error)) from error
        if request.model not in ("default", self.model):
            raise ModelNotFound(f"the model {request.model!r} is not served here")
        return request

    async def stream(self, endpoint: str, request: Body, http: object) -> AsyncGenerator[str, None]:
        return self._events(request)

    async def _events(self, request: Body) -> AsyncGenerator[str, None]:
        async with aclosing(self._texts(request)) as texts:
            async for text in texts:
                yield f"data: {json.dumps({'text': text})}\n\n"
        yield "data: [DONE]\n\n"

    async def answer(self, endpoint: str, request: Body, http: object) -> bytes:
        async with aclosing(self._texts(request)) as texts:
            whole = "".join([text async for text in texts])
        return json.dumps({"text": whole}).encode()

    async def stored(self, response_id: str, *, cancel: bool) -> bytes:
        raise InvalidRequest(f"no response {response_id!r} is stored by the script")

    async def _texts(self, body: Body) -> AsyncGenerator[str, None]:
        params = {"max_new_tokens": body.max_tokens}
        request = Request(new_rid(), ids_of(body.prompt), params, timeout_s=body.timeout)
        async with aclosing(self._service.stream(request)) as deltas:
            async for delta in deltas:
                yield delta.text


class LateOpenAI(ScriptedOpenAI):
    """One that is made only when something is written to the fifo in the variable GATE."""

    def __init__(self, service: Service, engine_args: Mapping[str, Any], *_: object) -> None:
        say("the OpenAI layer waits")
        Path(os.environ["GATE"]).read_text()
        super().__init__(service, engine_args)


class NoOpenAI:
    """One that cannot be made."""

    def __init__(self, service: Service, engine_args: Mapping[str, Any], *_: object) -> None:
        raise OSError("the script says that the template is missing")
