"""SGLang with a scripted scheduler: everything between HTTP and the model is real, no model runs.

SGLang's own hooks (0.5.23) replace the scheduler and the detokenizer process: the scripted
scheduler speaks SGLang's messages and emits one token per credit for every running request, the
detokenizer idles. So the same engine serves this project's server, SGLang's, and SGLang's routers.
`python -m benchmarks.scripted_sglang ours` is this project's server over it,
`python -m benchmarks.scripted_sglang peers JSON` SGLang's own, one for each entry of the list.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_eagle import serve
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan.config import Settings
from pd_eagle.plan.deployment import Stack
from pd_eagle.workers import engine
from pd_eagle.workers.forked_engine import forking

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The variable that names the datagram socket on which a decoding scheduler gets its credits.
CREDITS = "FRONT_BENCHMARK_CREDITS"
#: Requests for fewer tokens (probes, warm-ups) are answered at once, without a credit.
UNPACED_BELOW_TOKENS = 16
KV_TOKENS = 50_000_000
SAID = " the quick brown fox jumps over the lazy dog and then it runs home"


@dataclass(slots=True)
class _Running:
    rid: str
    prompt_tokens: int
    wanted: int
    done: int = 0


class Scheduler:
    """Speaks SGLang's scheduler protocol, without a model."""

    def __init__(self, server_args: Any, port_args: Any, credits: Path | None) -> None:
        import zmq
        from sglang.srt.utils.hf_transformers_utils import get_tokenizer
        from sglang.srt.utils.network import get_zmq_socket

        context = zmq.Context()
        self._requests = get_zmq_socket(
            context, zmq.PULL, port_args.scheduler_input_ipc_name, False
        )
        self._results = get_zmq_socket(context, zmq.PUSH, port_args.tokenizer_ipc_name, False)
        self._one_token = server_args.disaggregation_mode == "prefill"
        tokenizer = get_tokenizer(server_args.model_path)
        self._ids: list[int] = tokenizer.encode(SAID, add_special_tokens=False)
        self._texts: list[str] = [tokenizer.decode([token]) for token in self._ids]
        self._running: dict[str, _Running] = {}
        self._steps: list[int] = []
        self._poller = zmq.Poller()
        self._poller.register(self._requests, zmq.POLLIN)
        self._credits: socket.socket | None = None
        if credits is not None and not self._one_token:
            self._credits = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._credits.bind(str(credits))
            self._poller.register(self._credits, zmq.POLLIN)

    def serve(self) -> None:
        """Answer for ever. A credit "N" allows one step as soon as N requests run."""
        while True:
            ready = dict(self._poller.poll())
            if self._requests in ready:
                self._take_requests()
            if self._credits is not None and self._credits.fileno() in ready:
                self._steps.append(int(self._credits.recv(16)))
            while self._steps and len(self._running) >= self._steps[0]:
                self._steps.pop(0)
                self._step(list(self._running.values()), tokens=1)

    def _take_requests(self) -> None:
        import zmq
        from sglang.srt.managers import io_struct

        while self._requests.poll(0):
            message = io_struct.sock_recv(self._requests, flags=zmq.NOBLOCK)
            for one in getattr(message, "batch", [message]):
                if isinstance(one, io_struct.TokenizedGenerateReqInput):
                    self._begin(one)
                elif isinstance(one, io_struct.AbortReq):
                    self._running.pop(one.rid, None)
                elif isinstance(one, io_struct.GetInternalStateReq):  # a router asks for it
                    state = io_struct.GetInternalStateReqOutput(internal_state={})
                    io_struct.sock_send(self._results, state)

    def _begin(self, message: Any) -> None:
        wanted = 1 if self._one_token else message.sampling_params.max_new_tokens
        running = _Running(message.rid, len(message.input_ids), wanted)
        if self._one_token or wanted < UNPACED_BELOW_TOKENS:
            self._step([running], tokens=wanted)
        else:
            self._running[message.rid] = running

    def _step(self, requests: list[_Running], tokens: int) -> None:
        from sglang.srt.managers import io_struct

        texts, ids, reasons = [], [], []
        for one in requests:
            steps = [(one.done + n) % len(self._ids) for n in range(tokens)]
            texts.append("".join(self._texts[n] for n in steps))
            ids.append(array.array("i", [self._ids[n] for n in steps]))
            one.done += tokens
            finished = one.done >= one.wanted
            reasons.append({"type": "length", "length": one.wanted} if finished else None)
            if finished:
                self._running.pop(one.rid, None)
        output = io_struct.BatchStrOutput(**_fields(requests, texts, ids, reasons))
        io_struct.sock_send(self._results, output)


def _fields(requests: list[_Running], texts: Any, ids: Any, reasons: Any) -> dict[str, Any]:
    import msgspec
    from sglang.srt.managers.io_struct import BatchStrOutput

    nothing = {
        field.encode_name: None
        for field in msgspec.structs.fields(BatchStrOutput)
        if field.required
    }
    zeros = [0] * len(requests)
    return nothing | {
        "rids": [one.rid for one in requests],
        "finished_reasons": reasons,
        "output_strs": texts,
        "output_ids": ids,
        "prompt_tokens": [one.prompt_tokens for one in requests],
        "completion_tokens": [one.done for one in requests],
        "reasoning_tokens": zeros,
        "cached_tokens": zeros,
        "retraction_counts": zeros,
    }


# --- entry points of the processes that SGLang starts


def run_scheduler(server_args: Any, port_args: Any, *ranks_and_pipe: Any, **_: Any) -> None:
    """Run the scripted scheduler."""
    from sglang.srt.utils import kill_itself_when_parent_died

    kill_itself_when_parent_died()
    path = os.environ.get(CREDITS)
    scheduler = Scheduler(server_args, port_args, Path(path) if path else None)
    ready = {"status": "ready", "max_total_num_tokens": KV_TOKENS, "max_req_input_len": 100_000}
    ranks_and_pipe[-1].send(ready)
    scheduler.serve()


def run_detokenizer(server_args: Any, port_args: Any) -> None:
    """Run an idle detokenizer: the scheduler sends text itself."""
    from sglang.srt.utils import kill_itself_when_parent_died

    kill_itself_when_parent_died()
    while True:
        signal.pause()


# --- this project's server


def start(engine_args: Mapping[str, Any], *, fork: bool) -> Any:
    """Start an SGLang engine with the scripted scheduler, in a worker."""
    from sglang.srt.entrypoints.engine import Engine

    Engine.run_scheduler_process_func = staticmethod(run_scheduler)
    Engine.run_detokenizer_process_func = staticmethod(run_detokenizer)
    return engine.start(engine_args, fork=fork)


# --- SGLang's server

#: Engine arguments of this project that SGLang's server gets too; the rest are its defaults.
_SHARED_ARGS = (
    "model_path",
    "served_model_name",
    "tp_size",
    "device",
    "dtype",
    "attention_backend",
    "sampling_backend",
    "disable_cuda_graph",
    "disable_overlap_schedule",
)


def serve_peers(entries: list[dict[str, Any]]) -> None:
    """Fork SGLang's server once for each entry; end them all when standard input ends.

    An entry holds `ServerArgs` and the path of the credits; SGLang is imported once for all.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    deployment = deployments.decide(Settings.from_env(os.environ), os.environ)
    os.environ.update(deployment.environment)
    shared = deployment.front_args()
    engine.preload(shared)
    import sglang.srt.entrypoints.http_server  # noqa: F401  once, before the forks

    pids = []
    for entry in entries:
        pid = os.fork()
        if pid == 0:
            _be_server({name: shared[name] for name in _SHARED_ARGS}, entry)
        pids.append(pid)
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _be_server(shared: dict[str, Any], entry: dict[str, Any]) -> None:
    from sglang.srt.entrypoints import http_server
    from sglang.srt.server_args import ServerArgs

    os.environ[CREDITS] = entry.pop("credits")
    # Its processes are forked too, as this project's are: that is a matter of the start alone.
    vars(http_server)["Engine"] = forking(engine._engine_class())
    more = {"host": "127.0.0.1", "log_level": "warning"}
    http_server.launch_server(
        ServerArgs(**shared, **more, **entry),
        run_scheduler_process_func=run_scheduler,
        run_detokenizer_process_func=run_detokenizer,
    )
    os._exit(1)


def main(argv: list[str]) -> int:
    if argv[0] == "ours":
        return serve.main(os.environ, Stack(engine="benchmarks.scripted_sglang:start"))
    serve_peers(json.loads(argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
