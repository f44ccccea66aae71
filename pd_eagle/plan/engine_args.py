"""What each worker's SGLang engine is told, and which transfer carries the KV: pure.

It knows SGLang's argument names (0.5.23) but imports none of it. It knows nothing of processes: who
starts the engine also sets the variables of `environment`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import SettingsError
from pd_eagle.plan import tool_parsers, tuning
from pd_eagle.plan.memory import cpu_kv_tokens
from pd_eagle.plan.owned_arguments import OWNED
from pd_eagle.version import NIXL_VERSION

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Kind
    from pd_eagle.plan.placement import Plan, WorkerPlan
    from pd_eagle.plan.shapes import ModelShape

# The same name as in pd_eagle.cpu, which registers it; a test holds both together.
CPU_ATTENTION_BACKEND = "pd_eagle_torch"

_EXTRAS = {
    ("nixl", "cpu"): f"nixl=={NIXL_VERSION}",
    ("nixl", "cuda"): f"nixl=={NIXL_VERSION}",
    ("mooncake", "cpu"): "'pd-eagle[mooncake-cpu]'",
    ("mooncake", "cuda"): "'pd-eagle[mooncake-cuda]'",
}


def installed_transfers() -> frozenset[str]:
    """Return which transfer backends can be imported; imports none of them."""
    return frozenset(
        name for name in ("nixl", "mooncake") if importlib.util.find_spec(name) is not None
    )


def choose_transfer(settings: Settings, kind: Kind, installed: Collection[str]) -> tuple[str, str]:
    """Return the transfer backend and why it was taken.

    Raises SettingsError, with what to install, when the one asked for (or any) is missing.
    """
    asked = settings.disagg_transfer_backend
    if asked != "auto":
        if asked not in installed:
            raise SettingsError(
                f"DISAGG_TRANSFER_BACKEND={asked!r}: it is not installed; wanted"
                f" pip install {_EXTRAS[asked, kind]}, or auto"
            )
        return asked, f"DISAGG_TRANSFER_BACKEND={asked}"
    if "nixl" in installed:
        return "nixl", _WHY_NIXL[kind]
    if "mooncake" in installed:
        return "mooncake", "nixl is not installed"
    raise SettingsError(
        "DISAGG_TRANSFER_BACKEND='auto': neither nixl nor mooncake is installed; wanted"
        f" pip install {_EXTRAS['nixl', kind]} or {_EXTRAS['mooncake', kind]}"
    )


_WHY_NIXL = {
    "cpu": "it needs no library from the system",
    "cuda": (
        "measured on two H100, a whole request takes as long over it as over mooncake (30,000"
        " tokens: 975 and 977 ms), and it needs neither RDMA hardware nor a library from the system"
    ),
}


def environment(kind: Kind, transfer: str | None, ib_device: str | None) -> dict[str, str]:
    """Return the variables that a process hosting a CUDA engine needs before CUDA is touched.

    The CPU platform has its own. Mooncake's default protocol does not start without RDMA hardware:
    unless RDMA devices are named, its KV goes over NVLink (SGLang threads #17866 and #23329).
    """
    if kind == "cpu":
        return {}
    # NVML's order, in which the plan counts.
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if transfer == "mooncake" and ib_device is None:
        variables["SGLANG_MOONCAKE_CUSTOM_MEM_POOL"] = "INTRA_NODE_NVLINK"
        variables["MC_INTRANODE_NVLINK"] = "true"
    return variables


def installed_tracing() -> bool:
    """Tell whether an engine could make spans.

    SGLang 0.5.23 (srt/observability/trace.py) imports the exporters for gRPC and for HTTP, though
    it uses one, and an engine does not start with `enable_trace` where either is missing.
    """
    return all(map(_is_installed, _TRACING))


_TRACING = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def tracing(traces_url: str | None, *, installed: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an engine's arguments, and its process's variables, that let it make spans.

    SGLang takes the whole URL, and knows from the variable alone that it is one for HTTP.
    """
    if traces_url is None or not installed:
        return {}, {}
    arguments = {"enable_trace": True, "otlp_traces_endpoint": traces_url}
    return arguments, {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}


def check(settings: Settings) -> None:
    """Raise SettingsError for every engine argument of the user's that is not his to set."""
    problems = [
        f"{variable}: {key}={given[key]!r}: wanted without {key}: {OWNED[key]}"
        for variable, given in _given(settings)
        for key in given
        if key in OWNED
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def of_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that tell SGLang 0.5.23 what it misses in a model's config.json.

    transformers 5 writes Gemma 2's activation under one name; SGLang reads two, and takes the
    model only when both say the same.
    """
    activation = config.get("hidden_activation")
    if "Gemma2ForCausalLM" not in (config.get("architectures") or ()) or "hidden_act" in config:
        return {}
    if activation is None:
        return {}
    return {"json_model_override_args": json.dumps({"hidden_act": activation})}


def _given(settings: Settings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "ENGINE_ARGS", settings.engine_args
    yield "PREFILL_ENGINE_ARGS", settings.prefill_engine_args
    yield "DECODE_ENGINE_ARGS", settings.decode_engine_args


def build(
    settings: Settings,
    plan: Plan,
    worker: WorkerPlan,
    *,
    model_path: str,
    draft_path: str | None,
    transfer: str | None,
    bootstrap_port: int | None,
    shape: ModelShape,
    token_map: str | None = None,
) -> dict[str, Any]:
    """Return the keyword arguments of sglang.Engine for `worker`.

    `transfer` may be None for a unified worker alone. `token_map` is SGLang's .pt file; unset, the
    user's own path is passed. Raises SettingsError when the user's own engine arguments touch what
    the plan depends on.
    """
    check(settings)
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "log_level": settings.log_level.lower(),
        "incremental_streaming_output": True,
        # A scheduler that spins while idle takes a core from the others; it wakes on its socket.
        "sleep_on_idle": True,
        # For /metrics: each worker's series go into files of its own.
        "enable_metrics": True,
        "tp_size": worker.tp,
        **_optional(settings),
    }
    if parser := tool_parsers.of_architecture(shape.architectures):
        arguments.setdefault("tool_call_parser", parser)
    if plan.kind == "cpu":
        arguments |= _cpu(settings, shape)
    else:
        arguments |= {"device": "cuda", "base_gpu_id": worker.devices[0]}
    if worker.role != "unified":
        if transfer is None:
            raise ValueError(f"{worker.name}: a prefill or decode engine needs a transfer")
        arguments |= _pd(settings, worker, transfer, bootstrap_port, plan.kind)
    if settings.speculative_algorithm:
        arguments |= _speculative(settings, plan.kind, draft_path, token_map)
    arguments |= tuning.for_role(plan.defaults, worker.role)
    return arguments | _of_role(settings, worker)


def _optional(settings: Settings) -> dict[str, Any]:
    names = (
        "served_model_name",
        "context_length",
        "mem_fraction_static",
        "tool_call_parser",
        "reasoning_parser",
    )
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _cpu(settings: Settings, shape: ModelShape) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "device": "cpu",
        # "auto" would make float16 of float32, which few CPUs can calculate with.
        "dtype": "float32" if shape.dtype == "float32" else "bfloat16",
        "attention_backend": CPU_ATTENTION_BACKEND,
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        # The overlap path makes CUDA events: srt/disaggregation/prefill.py.
        "disable_overlap_schedule": True,
        # A tree of drafts needs it: SGLang refuses larger pages by the backend's name.
        "page_size": 1,
        # A sign of life after every step: they are slow here.
        "load_snapshot_publish_interval": 1,
        # A step of a long prompt takes seconds here, in which the engine gives no sign of life.
        "chunked_prefill_size": 1024,
        "max_total_tokens": cpu_kv_tokens(shape, settings.context_length),
    }
    if settings.mem_fraction_static is None:
        # Not what the pool takes (max_total_tokens is), but what may be in use when it is made:
        # weights, and engines that start at the same time.
        arguments["mem_fraction_static"] = 0.8
    return arguments


def _pd(
    settings: Settings, worker: WorkerPlan, transfer: str, port: int | None, kind: Kind
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "disaggregation_mode": worker.role,
        "disaggregation_transfer_backend": transfer,
    }
    if port is not None:
        arguments["disaggregation_bootstrap_port"] = port
    if settings.disagg_ib_device is not None:
        arguments["disaggregation_ib_device"] = settings.disagg_ib_device
    if kind == "cpu" and worker.role == "prefill":
        # Prefill need not wait until decode has room: it says so only between two of its steps,
        # which are long here. Not on GPUs, where this has not been tried.
        arguments["optimistic_prefill_attempts"] = 1
    if kind == "cpu" and worker.role == "decode":
        # The default, a pinned host pool, calls cudaHostRegister.
        arguments["disaggregation_decode_retraction_backup"] = "cpu_tensor"
    return arguments


def _speculative(
    settings: Settings, kind: Kind, draft_path: str | None, token_map: str | None
) -> dict[str, Any]:
    tree = tuning.tree(settings, kind)
    assert tree is not None
    arguments: dict[str, Any] = {
        "speculative_algorithm": settings.speculative_algorithm,
        "speculative_num_steps": tree.steps,
        "speculative_eagle_topk": tree.topk,
        "speculative_num_draft_tokens": tree.tokens,
        "speculative_attention_mode": settings.speculative_attention_mode,
    }
    if draft_path is not None:
        arguments["speculative_draft_model_path"] = draft_path
    if settings.speculative_adaptive:
        arguments["speculative_adaptive"] = True
        if settings.speculative_adaptive_config is not None:
            arguments["speculative_adaptive_config"] = settings.speculative_adaptive_config
    token_map = token_map or settings.speculative_token_map
    if token_map is not None:
        arguments["speculative_token_map"] = token_map
    return arguments


def _of_role(settings: Settings, worker: WorkerPlan) -> dict[str, Any]:
    own: Mapping[str, Any] = {}
    if worker.role == "prefill":
        own = settings.prefill_engine_args
    elif worker.role == "decode":
        own = settings.decode_engine_args
    return {**settings.engine_args, **own}
