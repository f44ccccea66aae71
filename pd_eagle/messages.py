"""The values that cross a layer or a process: requests down, deltas up.

Frozen and slotted, encoded by msgspec as MessagePack; the two unions at the end are closed: what
is not in them does not cross the worker's socket. It does not know how frames are cut.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct

Role = Literal["prefill", "decode", "unified"]
#: What an engine can be told to do beside its requests; SGLang's own names.
ControlName = Literal["flush_cache", "get_server_info", "start_profile", "stop_profile"]


class Options(Struct, frozen=True, omit_defaults=True):
    """What SGLang's `GenerateReqInput` takes per request beside prompt and sampling parameters.

    Field names and meanings are SGLang's own (`srt/managers/io_struct.py`, 0.5.23).
    """

    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    token_ids_logprob: list[int] | None = None
    return_text_in_logprobs: bool = False
    require_reasoning: bool = False
    max_thinking_tokens: int | None = None
    custom_logit_processor: str | None = None
    priority: int | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    external_trace_header: dict[str, str] | None = None


class Request(Struct, frozen=True):
    """One prompt, tokenized once, with how to answer it.

    `rid` has a fixed length (SGLang matches rids by prefix). `timeout_s` counts from acceptance.
    """

    rid: str
    input_ids: list[int]
    sampling_params: dict[str, Any]
    options: Options = Options()
    timeout_s: float | None = None


def new_rid() -> str:
    """Return a request id: 32 hexadecimal digits, so never the prefix of another."""
    return uuid.uuid4().hex


class Bootstrap(Struct, frozen=True):
    """Where decode finds the prefill half of the same request, and the room that joins the two."""

    host: str
    port: int
    room: int


class EngineInfo(Struct, frozen=True):
    """What a started engine says of itself. Token counts are per engine, over all its ranks.

    `spawned_because`: why its processes were not forked from the worker's, None if they were.
    """

    pid: int
    scheduler_pids: list[int]
    max_total_tokens: int
    context_length: int
    vocab_size: int
    spawned_because: str | None = None


class Load(Struct, frozen=True, omit_defaults=True):
    """How busy an engine is, from SGLang's own shared-memory snapshot.

    `snapshot_at` is the scheduler's wall clock in seconds; a stale one is the sign of a hang.
    `max_running` is how many requests the engine runs at once at most, 0 if unknown. `queued`
    are those of `waiting` that wait for this engine itself, `awaiting_partner` those that have not
    heard of their other half. With EAGLE: tokens a verification, and accepted tokens of those
    drafted.
    """

    snapshot_at: float
    running: int = 0
    waiting: int = 0
    awaiting_partner: int = 0
    used_tokens: int = 0
    max_running: int = 0
    queued: int = 0
    spec_accept_length: float | None = None
    spec_accept_rate: float | None = None


# --- front → worker


class Submit(Struct, frozen=True, tag="submit"):
    request: Request
    bootstrap: Bootstrap | None = None


class Abort(Struct, frozen=True, tag="abort"):
    rid: str


class Ping(Struct, frozen=True, tag="ping"):
    seq: int


class Control(Struct, frozen=True, tag="control"):
    """Have the engine do `name`; its `ControlResult` has the same `seq`."""

    seq: int
    name: ControlName
    arguments: dict[str, Any] = {}


class Stop(Struct, frozen=True, tag="stop"):
    """End the engine and the process; requests still open are aborted."""


# --- worker → front


class Ready(Struct, frozen=True, tag="ready"):
    info: EngineInfo


class StartFailure(Struct, frozen=True, tag="start_failure"):
    message: str


class Delta(Struct, frozen=True, tag="delta"):
    """What one step of an engine added to one request.

    `text` and `output_ids` are increments. `meta` holds the entries of SGLang's `meta_info` that
    changed since the last delta (the first carries all). The last delta has `finished`.
    """

    rid: str
    text: str
    output_ids: list[int]
    meta: dict[str, Any]
    finished: bool


class Failed(Struct, frozen=True, tag="failed"):
    """The one terminal event of a request that did not finish; `code` is of `errors`."""

    rid: str
    code: str
    message: str


class Pong(Struct, frozen=True, tag="pong"):
    seq: int
    load: Load | None


class ControlResult(Struct, frozen=True, tag="control_result"):
    """What the engine said, or why it could not."""

    seq: int
    value: Any = None
    error: str | None = None


def fingerprint(request: Request) -> bytes | None:
    """Return what two requests have in common that ask for the same; None if it cannot be sent."""
    asked = (request.input_ids, request.sampling_params, request.options)
    try:
        body = msgspec.msgpack.encode(asked)
    except (OverflowError, TypeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(body, digest_size=16).digest()


Event = Delta | Failed
ToWorker = Submit | Abort | Ping | Control | Stop
FromWorker = Ready | StartFailure | Delta | Failed | Pong | ControlResult
