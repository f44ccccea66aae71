"""SGLang's Engine behind a small protocol, inside the worker; only here is it imported for engines.

It turns SGLang's result dictionaries into deltas and failures. It does not know of sockets, of
other workers, or of HTTP. SGLang is imported when an engine is started, not before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pd_eagle.errors import EngineError, InvalidRequest, Overloaded, StartFailed, TransferFailed
from pd_eagle.messages import Delta, EngineInfo, Event, Failed, Load
from pd_eagle.overrides import Override, apply
from pd_eagle.plan import cuda_answers
from pd_eagle.workers import engine_control, grammar_dead_ends, model_files
from pd_eagle.workers.acceptance import Acceptance
from pd_eagle.workers.forked_engine import forking
from pd_eagle.workers.run_folder import instance_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from pd_eagle.messages import ControlName, Submit

logger = logging.getLogger(__name__)

#: What a process imports so that an engine forked from it has little left to import.
SGLANG_MODULES = (
    "sglang",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
)


class Engine(Protocol):
    """One engine of one role, in the process that calls."""

    info: EngineInfo

    def generate(self, submit: Submit) -> AsyncGenerator[Event, None]:
        """Yield the request's deltas; ends after a finished delta or a failure.

        Closing the generator from the task that iterates it, or cancelling that task, aborts.
        """

    def load(self) -> Load | None:
        """Return the newest load snapshot; None before the first."""

    async def control(self, name: ControlName, arguments: dict[str, Any]) -> Any:
        """Do what `name` says; return what there is to say of it, in JSON's types."""

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop in which `generate` must be iterated."""

    def shutdown(self) -> None:
        """End every process of the engine but the caller's."""


def start(engine_args: Mapping[str, Any], *, fork: bool) -> Engine:
    """Start an SGLang engine; blocks until it is ready.

    With `fork`, scheduler and detokenizer are forked from this process instead of spawned. Raises
    `StartFailed` when the engine's own processes fail; what SGLang itself raises is not caught.
    """
    return _SGLangEngine(engine_args, fork=fork)


class _SGLangEngine:
    def __init__(self, engine_args: Mapping[str, Any], *, fork: bool) -> None:
        engine_class = forking(_engine_class()) if fork else _engine_class()
        arguments = _with_token_map_file(engine_args)
        self._engine = engine_class(**arguments, custom_sigquit_handler=_child_failed)
        self._in_pd = engine_args.get("disaggregation_mode", "null") != "null"
        self._tokenizer_manager = self._engine.tokenizer_manager
        self._acceptance = Acceptance()
        self.info = self._describe()

    def _describe(self) -> EngineInfo:
        import os

        result, manager = self._engine._scheduler_init_result, self._tokenizer_manager
        scheduler = result.scheduler_infos[0]
        return EngineInfo(
            pid=os.getpid(),
            scheduler_pids=_schedulers(
                self._engine.get_all_child_pids(),
                self._engine.server_args.detokenizer_worker_num,
            ),
            max_total_tokens=scheduler["max_total_num_tokens"],
            # With EAGLE, drafts take the last places of the context (SGLang 0.5.23).
            context_length=manager.context_len - manager.num_reserved_tokens,
            vocab_size=manager.model_config.vocab_size,
            spawned_because=getattr(self._engine, "spawned_because", None),
        )

    def event_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._engine.loop
        return loop

    async def generate(self, submit: Submit) -> AsyncGenerator[Event, None]:
        rid = submit.request.rid
        sent: dict[str, Any] = {}
        try:
            async for chunk in self._tokenizer_manager.generate_request(_to_sglang(submit), None):
                event = self._event(rid, chunk, sent)
                yield event
                if isinstance(event, Failed) or event.finished:
                    return
        except ValueError as error:
            # Before the first chunk: SGLang's own validation of the request. Later it is a fault.
            code = EngineError.code if sent else InvalidRequest.code
            yield Failed(rid, code, str(error))
        else:
            yield Failed(rid, EngineError.code, "the engine ended the request without a result")

    def _event(self, rid: str, chunk: dict[str, Any], sent: dict[str, Any]) -> Event:
        meta = chunk["meta_info"]
        reason = meta["finish_reason"]
        if reason is not None and reason["type"] == "abort":
            return _abort_failure(rid, reason, in_pd=self._in_pd)
        changed = _changes(meta, sent)
        if reason is not None:
            self._acceptance.note(meta)
        return Delta(rid, chunk["text"], chunk["output_ids"], changed, reason is not None)

    async def control(self, name: ControlName, arguments: dict[str, Any]) -> Any:
        return await engine_control.control(self._engine, name, arguments)

    def load(self) -> Load | None:
        snapshots = self._tokenizer_manager.load_snapshot_reader.read_all()
        if not snapshots:
            return None
        return Load(
            snapshot_at=min(s.timestamp for s in snapshots),
            running=sum(s.num_running_reqs for s in snapshots),
            waiting=sum(s.num_waiting_reqs for s in snapshots),
            awaiting_partner=sum(_awaiting_partner(s.disaggregation) for s in snapshots),
            used_tokens=sum(s.num_used_tokens for s in snapshots),
            queued=sum(map(_queued, snapshots)),
            max_running=sum(s.max_running_requests for s in snapshots),
            spec_accept_length=self._acceptance.length,
            spec_accept_rate=self._acceptance.rate,
        )

    def shutdown(self) -> None:
        self._engine.shutdown()


def _queued(snapshot: Any) -> int:
    """Return how many requests wait for this engine's compute or for room in its KV pool.

    SGLang (0.5.23) also counts requests that wait for the other half: prefill's bootstrap queue,
    decode's handshakes and transfers.
    """
    queues, pd = snapshot.queues, snapshot.disaggregation
    if queues is None or pd is None:
        return 0
    queued: int = queues.waiting + queues.prealloc_ready + pd.decode_retracted_queue_reqs
    return queued


def _schedulers(children: list[int], detokenizers: int) -> list[int]:
    """Return those of an engine's processes that are schedulers: all but the last.

    Several detokenizers have a router process beside them (SGLang 0.5.23).
    """
    return children[: -(detokenizers + 1 if detokenizers > 1 else 1)]


def _awaiting_partner(queues: Any) -> int:
    if queues is None:
        return 0
    return int(queues.prefill_bootstrap_queue_reqs + queues.decode_prealloc_queue_reqs)


_TOKENIZER_DEFAULTS: dict[str, Any] = {
    "tokenizer_mode": "auto",
    "trust_remote_code": False,
    "revision": None,
    "tokenizer_backend": "huggingface",
}


def load_tokenizer(engine_args: Mapping[str, Any]) -> Any:
    """Return the tokenizer that an engine started with `engine_args` would use."""
    with _quietly():
        from sglang.srt.utils.hf_transformers import tokenizer

    path = engine_args.get("tokenizer_path") or engine_args["model_path"]
    options = {
        name: engine_args.get(name, _TOKENIZER_DEFAULTS[name]) for name in _TOKENIZER_DEFAULTS
    }
    return tokenizer.get_tokenizer(path, **options)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    # On a CPU SGLang's imports log thirty warnings about CUDA-only parts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def preload(engine_args: Mapping[str, Any]) -> None:
    """Import SGLang and load the tokenizer, for all engines forked from this process.

    Beside engine arguments, `architectures` names the classes of the models; without it all are
    imported that SGLang has.

    Three quarters of a forked engine's start is its tokenizer, loaded by each of its processes in
    turn (SGLang 0.5.23): from now on `get_tokenizer` returns the loaded one.
    """
    with _quietly():
        cuda_answers.install()
        for module in SGLANG_MODULES:
            importlib.import_module(module)
        model_files.import_registry(engine_args.get("architectures", ()))
        apply([_TOKENIZER_ONCE])
        load_tokenizer(engine_args)


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    loaded: dict[str, Any] = {}

    @functools.wraps(load)
    def load_once(path: str, *args: Any, **options: Any) -> Any:
        key = repr((path, args, sorted((_TOKENIZER_DEFAULTS | options).items())))
        if key not in loaded:
            loaded[key] = load(path, *args, **options)
        return loaded[key]

    return load_once


_TOKENIZER_ONCE = Override(
    target="sglang.srt.utils.hf_transformers.tokenizer:get_tokenizer",
    shape="tokenizer_name, *args, tokenizer_mode, trust_remote_code, tokenizer_revision, "
    "tokenizer_backend, **kwargs",
    because="scheduler, detokenizer and tokenizer manager each take seconds to load the same one",
    new=_once,
)


def generate_input_class() -> Any:
    """Return SGLang's `GenerateReqInput`; its import takes seconds."""
    with _quietly():
        from sglang.srt.managers.io_struct import GenerateReqInput

    return GenerateReqInput


def _with_token_map_file(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return `engine_args` with a JSON token map as the torch file that SGLang reads."""
    path = engine_args.get("speculative_token_map")
    if path is None or zipfile.is_zipfile(path):  # what torch.save has written since 1.6
        return dict(engine_args)
    import torch

    token_ids = json.loads(Path(path).read_text(encoding="utf-8"))
    file = Path(tempfile.mkdtemp()) / "token_map.pt"  # in the worker's own temporary folder
    torch.save(torch.tensor(token_ids, dtype=torch.int64), file)
    return dict(engine_args) | {"speculative_token_map": str(file)}


def _engine_class() -> Any:
    from sglang.srt.entrypoints.engine import Engine as SGLangEngine

    class NamedEngine(SGLangEngine):  # type: ignore[misc]
        @classmethod
        def _launch_scheduler_processes(
            cls, server_args: Any, port_args: Any, *args: Any, **kwargs: Any
        ) -> Any:
            # SGLang names its shared memory at random and never removes it (0.5.23): named after
            # the worker, the front can remove it even after a crash.
            port_args.instance_id = instance_id(Path(tempfile.gettempdir()))
            return super()._launch_scheduler_processes(server_args, port_args, *args, **kwargs)

    return NamedEngine


def _child_failed(signum: int, frame: object) -> None:
    # SGLang's children send SIGQUIT when they fail while starting; its own handler would kill
    # this process before it could say why.
    raise StartFailed("a process of the engine failed while it was starting")


def _to_sglang(submit: Submit) -> Any:
    import msgspec
    from sglang.srt.managers.io_struct import GenerateReqInput

    request, bootstrap = submit.request, submit.bootstrap
    return GenerateReqInput(
        rid=request.rid,
        input_ids=request.input_ids,
        sampling_params=dict(request.sampling_params),
        stream=True,
        bootstrap_host=bootstrap.host if bootstrap else None,
        bootstrap_port=bootstrap.port if bootstrap else None,
        bootstrap_room=bootstrap.room if bootstrap else None,
        **msgspec.structs.asdict(request.options),
    )


def _changes(meta: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `meta` that are not in `sent`; lists are increments, so always."""
    changed = {
        key: value
        for key, value in meta.items()
        if isinstance(value, list | dict) or key not in sent or sent[key] != value
    }
    sent.update(changed)
    return changed


def _abort_failure(rid: str, reason: dict[str, Any], *, in_pd: bool) -> Failed:
    message = reason.get("message") or "the engine aborted the request"
    if grammar_dead_ends.is_one(message):
        return Failed(rid, InvalidRequest.code, grammar_dead_ends.MESSAGE)
    match reason.get("status_code"):
        case 400:
            return Failed(rid, InvalidRequest.code, message)
        case 429 | 503:
            return Failed(rid, Overloaded.code, message)
        case int() if in_pd:
            return Failed(rid, TransferFailed.code, message)
        case _:
            return Failed(rid, EngineError.code, message)
