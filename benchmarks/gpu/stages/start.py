"""Start time by phase, over each transfer; and whether engines may be forked on this device."""

from __future__ import annotations

import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import CHAT, ask, chat_body
from benchmarks.gpu.host import DUMMY, Host, prompts
from benchmarks.gpu.module_process import module_said
from pd_eagle import cpu
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found, Journal

# Log lines of engines and package that mark a phase of the start.
_PHASE = re.compile(
    r"Load weight (?:begin|end)|KV Cache is allocated|[Cc]apture .*(?:begin|end)|Memory pool end"
    r"|workers up|^ready|carried|spawned|killed|failed: |is back after|→|server_args"
    r"|Init torch dist|Found \d+ HCAs|protocol:|NVLINK|NVLink",
)
# These keep SGLang's imports from touching the driver (availability tests of torch, FlashInfer).
OFF_THE_DRIVER = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def run(host: Host, journal: Journal) -> None:
    own = cpu.environment() if host.dry_run else {}
    journal.part("zygote's imports", lambda: _imports(own), gpus=0)
    off = own | OFF_THE_DRIVER
    journal.part("zygote's imports, off the driver", lambda: _imports(off), gpus=0)
    model = {"model_path": str(host.big_model()), "engine_args": DUMMY}
    journal.part("unified", lambda: _start(host, model | {"pd_mode": "off"}))
    journal.part("auto", lambda: _start(host, model))
    for transfer in ("nixl", "mooncake"):
        settings = model | {"pd_mode": "on", "disagg_transfer_backend": transfer}
        journal.part(f"PD {transfer}", partial(_start, host, settings), gpus=2)
    spawned = model | {"pd_mode": "off", "fork_workers": False}
    journal.part("unified, spawned", lambda: _start(host, spawned))
    for name in ("server, first", "server, again", "server, third"):
        journal.part(name, partial(_servers, host, 1), gpus=2)
    journal.part("two servers at once", partial(_servers, host, 2), gpus=2)


def _start(host: Host, settings: dict[str, Any]) -> Found:
    phases = Phases()
    logger = logging.getLogger()
    logger.addHandler(phases)
    try:
        with host.start(**settings) as engine:
            ready_s = phases.elapsed()
            began = time.monotonic()
            answers = ask(engine, prompts(2), 2, 8)
            health = engine.health()
            return {
                "ready_s": round(ready_s, 2),
                "first_answers_s": round(time.monotonic() - began, 3),
                "tokens": answers.tokens,
                "transfer": health["transfer_backend"],
                "plan": health["plan"]["reason"],
                "workers": [worker["name"] for worker in health["plan"]["workers"]],
                "spawned_because": [worker["spawned_because"] for worker in health["workers"]],
                "phases": phases.seen,
            }
    finally:
        logger.removeHandler(phases)


def _servers(host: Host, count: int) -> Found:
    """Start servers of one prefill and one decode engine each, several on the same GPUs."""
    settings = server_settings(host)
    script = "server.py" if count == 1 else "benchmarks/gpu/shared_server.py"
    names = [f"server-{number}" for number in range(count)]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        start = partial(started, host, stack, settings=settings, script=script)
        return dict(zip(names, pool.map(start, names), strict=True))


def server_settings(host: Host) -> dict[str, str]:
    """Return the variables of a server of one prefill and one decode engine of the big shape."""
    engine_args = host.settings(**DUMMY)["engine_args"]
    settings = {
        "DEVICE": host.device,
        "MODEL_PATH": str(host.big_model()),
        "PD_MODE": "on",
        "DISAGG_TRANSFER_BACKEND": "nixl",
    }
    if not host.dry_run:
        settings["MEM_FRACTION_STATIC"] = "0.9"
        engine_args |= {"max_total_tokens": 60_000}
    return settings | {"ENGINE_ARGS": json.dumps(engine_args)}


def started(
    host: Host, stack: ExitStack, name: str, settings: dict[str, str], script: str = "server.py"
) -> Found:
    """Start a server and ask it once; `ready_s` counts from the command."""
    log = host.folder / f"start-{name}.log"
    began = time.monotonic()
    server = stack.enter_context(ServerProcess(log, script=script, **settings))
    ready_s = time.monotonic() - began
    status, _ = server.post(CHAT, chat_body("Hello", 8, stream=False))
    health = server.get("/health")[1]
    return {
        "ready_s": round(ready_s, 2),
        "first_answer_s": round(time.monotonic() - began - ready_s, 3),
        "status": status,
        "spawned_because": [worker["spawned_because"] for worker in health["workers"]],
        "phases": [line[:200] for line in _lines(server) if _PHASE.search(line)][:80],
    }


def _lines(server: ServerProcess) -> list[str]:
    return server.log.read_text(errors="replace").splitlines()


class Phases(logging.Handler):
    """Collects log lines that mark a phase, with seconds since the start or `restart`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.restart()

    def restart(self) -> None:
        self.seen: list[list[Any]] = []
        self._began = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if _PHASE.search(said) and len(self.seen) < 80:
            self.seen.append([round(self.elapsed(), 2), record.name, said[:160]])


def _imports(variables: dict[str, str]) -> Found:
    """Import the zygote's modules in a separate process; report which one touched CUDA."""
    said = module_said("benchmarks.gpu.imports", variables=variables, timeout_s=150)
    return {"steps": json.loads(said.splitlines()[-1]), "variables": variables}
