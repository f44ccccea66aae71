"""Engine arguments: what each role is told, what the user may add, and whether SGLang takes it.

SGLang's own resolution runs here without a GPU, so these are not checked: which attention backend
it takes on an H100, the memory fraction and CUDA graph sizes it derives from the card, whether
RDMA devices exist, and everything that happens when weights are loaded. The GPU tests do that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from pd_eagle import cpu
from pd_eagle.errors import SettingsError
from pd_eagle.plan import engine_args
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import Inventory, Kind, parse_gpus
from pd_eagle.plan.engine_args import build, choose_transfer, environment
from pd_eagle.plan.known_models import CONFIGS
from pd_eagle.plan.models import load_shape
from pd_eagle.plan.owned_arguments import OWNED
from pd_eagle.plan.placement import Plan, plan

TARGET = load_shape("Qwen/Qwen2.5-7B-Instruct")
DRAFT = load_shape("leptonai/EAGLE-Qwen2.5-7B-Instruct")
EMBEDDED = load_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
CPU = Inventory("cpu", (), "no driver")


def told(settings: Settings, found: Plan, name: str, **changes: Any) -> dict[str, Any]:
    """What the worker `name` is told."""
    worker = next(worker for worker in found.workers if worker.name == name)
    given = {
        "model_path": "target",
        "draft_path": None,
        "transfer": "nixl",
        "bootstrap_port": None,
        "shape": TARGET,
    }
    return build(settings, found, worker, **(given | changes))


def on_gpus(settings: Settings, described: str = "4xH100") -> Plan:
    return plan(settings, parse_gpus(described), TARGET)


def test_the_two_halves_of_a_pair_on_gpus() -> None:
    settings = Settings.from_kwargs(log_level="WARNING")
    found = on_gpus(settings)
    both = {
        "model_path": "target",
        "log_level": "warning",
        "incremental_streaming_output": True,
        "sleep_on_idle": True,
        "enable_metrics": True,
        "tp_size": 1,
        "device": "cuda",
        "disaggregation_transfer_backend": "nixl",
    }
    assert told(settings, found, "prefill-0", bootstrap_port=8999) == both | {
        "base_gpu_id": 0,
        "disaggregation_mode": "prefill",
        "disaggregation_bootstrap_port": 8999,
    }
    assert told(settings, found, "decode-2") == both | {
        "base_gpu_id": 3,
        "disaggregation_mode": "decode",
    }


def test_a_unified_engine_is_told_nothing_of_pd() -> None:
    settings = Settings.from_kwargs(tp_size=2, disagg_ib_device="mlx5_0")
    arguments = told(settings, on_gpus(settings), "unified-0", transfer=None)
    assert (arguments["tp_size"], arguments["base_gpu_id"]) == (2, 0)
    assert not any(name.startswith("disaggregation") for name in arguments)


def test_a_pair_without_a_transfer_is_a_mistake() -> None:
    settings = Settings.from_env({})
    with pytest.raises(ValueError, match="prefill-0: a prefill or decode engine needs a transfer"):
        told(settings, on_gpus(settings), "prefill-0", transfer=None)


def test_the_two_halves_of_a_pair_on_the_cpu() -> None:
    settings = Settings.from_env({})
    found = plan(settings, CPU, EMBEDDED)
    prefill = told(settings, found, "prefill-0", shape=EMBEDDED, bootstrap_port=8998)
    assert prefill == {
        "model_path": "target",
        "log_level": "info",
        "incremental_streaming_output": True,
        "sleep_on_idle": True,
        "enable_metrics": True,
        "tp_size": 1,
        "device": "cpu",
        "dtype": "bfloat16",
        "attention_backend": engine_args.CPU_ATTENTION_BACKEND,
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "page_size": 1,
        "load_snapshot_publish_interval": 1,
        "chunked_prefill_size": 1024,
        "max_total_tokens": 23301,
        "mem_fraction_static": 0.8,
        "disaggregation_mode": "prefill",
        "disaggregation_transfer_backend": "nixl",
        "disaggregation_bootstrap_port": 8998,
        "optimistic_prefill_attempts": 1,
    }
    decode = told(settings, found, "decode-0", shape=EMBEDDED)
    assert decode["disaggregation_decode_retraction_backup"] == "cpu_tensor"
    assert "optimistic_prefill_attempts" not in decode


def test_the_cpu_backend_is_the_one_that_the_platform_registers() -> None:
    assert engine_args.CPU_ATTENTION_BACKEND == cpu.CPU_ATTENTION_BACKEND


@pytest.mark.parametrize(
    ("given", "shape", "tokens"),
    [
        ({}, EMBEDDED, 23301),  # 512 MiB of 23,040 bytes a token
        ({}, TARGET, 9362),
        ({"context_length": 4096}, TARGET, 9362),
        ({}, load_shape("leptonai/EAGLE-Qwen2.5-7B-Instruct"), 37449),
    ],
)
def test_the_cpu_pool_is_small(given: dict[str, Any], shape: Any, tokens: int) -> None:
    settings = Settings.from_kwargs(**given)
    found = plan(settings, CPU, shape)
    assert told(settings, found, "decode-0", shape=shape)["max_total_tokens"] == tokens


def test_the_users_memory_fraction_counts_on_the_cpu_too() -> None:
    settings = Settings.from_kwargs(mem_fraction_static=0.3)
    found = plan(settings, CPU, EMBEDDED)
    assert told(settings, found, "decode-0", shape=EMBEDDED)["mem_fraction_static"] == 0.3


def test_what_the_user_set_is_passed_on() -> None:
    given = {
        "served_model_name": "name",
        "context_length": 4096,
        "mem_fraction_static": 0.7,
        "tool_call_parser": "qwen25",
        "reasoning_parser": "qwen3",
    }
    settings = Settings.from_kwargs(disagg_ib_device="mlx5_0", **given)
    arguments = told(settings, on_gpus(settings), "decode-0")
    assert arguments.items() >= given.items()
    assert arguments["disaggregation_ib_device"] == "mlx5_0"


def test_both_roles_speculate_alike() -> None:
    settings = Settings.from_kwargs(speculative_algorithm="EAGLE", speculative_token_map="ids.pt")
    expected = {
        "speculative_algorithm": "EAGLE",
        "speculative_num_steps": 3,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 4,
        "speculative_attention_mode": "prefill",
        "speculative_draft_model_path": "draft",
        "speculative_token_map": "ids.pt",
    }
    found = on_gpus(settings)
    for name in ("prefill-0", "decode-0"):
        arguments = told(settings, found, name, draft_path="draft")
        assert {k: v for k, v in arguments.items() if k.startswith("speculative")} == expected
    converted = told(settings, found, "decode-0", draft_path="draft", token_map="converted.pt")
    assert converted["speculative_token_map"] == "converted.pt"


DOCUMENTED, CHAIN = (2, 6, 10), (3, 1, 4)


@pytest.mark.parametrize(
    ("described", "given", "expected"),
    [
        ("2xH100", {}, CHAIN),
        ("2xA100", {}, CHAIN),
        ("cpu", {}, DOCUMENTED),
        ("2xH100", {"speculative_num_steps": 2}, DOCUMENTED),
        ("2xH100", {"speculative_eagle_topk": 6}, DOCUMENTED),
        ("2xH100", {"speculative_num_draft_tokens": 10}, DOCUMENTED),
        ("2xH100", {"speculative_eagle_topk": 1}, (2, 1, 3)),
    ],
)
def test_the_tree_where_none_is_set_and_where_one_is(
    described: str, given: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    settings = Settings.from_kwargs(speculative_algorithm="EAGLE", pd_mode="off", **given)
    found = on_gpus(settings, described)
    arguments = told(settings, found, "unified-0", draft_path="draft")
    names = ("num_steps", "eagle_topk", "num_draft_tokens")
    assert tuple(arguments[f"speculative_{name}"] for name in names) == expected
    assert found.tree is not None
    assert (found.tree.steps, found.tree.topk, found.tree.tokens) == expected
    assert str(found.tree) in str(found)


@pytest.mark.parametrize(
    ("described", "given", "running"),
    [
        ("2xH100", {}, 256),  # the largest CUDA graph: hundreds of thousands of tokens fit
        ("4xH100", {"tp_size": 4}, 512),
        ("1xL40S", {"mem_fraction_static": 0.463}, 242),  # KV is what is short
        ("2xH100", {"engine_args": {"max_total_tokens": 25600}}, 100),
        ("2xH100", {"engine_args": {"max_running_requests": 7}}, 7),
        ("cpu", {}, 36),
    ],
)
def test_an_eagle_engine_runs_what_its_kv_holds_and_not_the_48_of_sglang(
    described: str, given: dict[str, Any], running: int
) -> None:
    settings = Settings.from_kwargs(speculative_algorithm="EAGLE", **({"pd_mode": "off"} | given))
    found = plan(settings, parse_gpus(described), TARGET, DRAFT)
    assert told(settings, found, "unified-0")["max_running_requests"] == running
    plain = Settings.from_kwargs(pd_mode="off")
    assert "max_running_requests" not in told(plain, on_gpus(plain, described), "unified-0")


def test_unified_engines_on_gpus_mix_decode_steps_into_chunks_unless_told_otherwise() -> None:
    tuned = {"chunked_prefill_size": 1024, "enable_mixed_chunk": True}
    for given in ({"unified_replicas": 2}, {"pd_mode": "off"}, {"tp_size": 2}):
        settings = Settings.from_kwargs(**given)
        arguments = told(settings, on_gpus(settings), "unified-0")
        assert {name: arguments[name] for name in tuned} == tuned
    own = {"chunked_prefill_size": 8192, "enable_mixed_chunk": False}
    settings = Settings.from_kwargs(unified_replicas=2, engine_args=own)
    arguments = told(settings, on_gpus(settings), "unified-1")
    assert {name: arguments[name] for name in own} == own
    assert arguments["base_gpu_id"] == 1
    for settings in (Settings.from_kwargs(pd_mode="on"), Settings.from_kwargs(pd_mode="off")):
        found = plan(settings, CPU if settings.pd_mode == "off" else parse_gpus("2xH100"), TARGET)
        for worker in found.workers:
            assert "enable_mixed_chunk" not in told(settings, found, worker.name)


def test_speculative_settings_without_an_algorithm_are_not_passed() -> None:
    settings = Settings.from_kwargs(speculative_num_steps=3)
    arguments = told(settings, on_gpus(settings), "decode-0", draft_path="draft")
    assert not any(name.startswith("speculative") for name in arguments)


def test_the_users_own_arguments_win_and_a_roles_own_over_the_common() -> None:
    settings = Settings.from_kwargs(
        engine_args={"sleep_on_idle": False, "random_seed": 1, "max_running_requests": 8},
        prefill_engine_args={"random_seed": 2},
        decode_engine_args={"random_seed": 3},
    )
    found = on_gpus(settings)
    prefill, decode = told(settings, found, "prefill-0"), told(settings, found, "decode-0")
    assert (prefill["random_seed"], decode["random_seed"]) == (2, 3)
    assert prefill["sleep_on_idle"] is decode["sleep_on_idle"] is False
    assert prefill["max_running_requests"] == decode["max_running_requests"] == 8


def test_arguments_that_the_plan_depends_on_are_refused_all_at_once() -> None:
    settings = Settings.from_kwargs(
        engine_args={"tp_size": 4, "dtype": "float32"},
        decode_engine_args={"incremental_streaming_output": False},
    )
    with pytest.raises(SettingsError) as caught:
        engine_args.check(settings)
    assert caught.value.message.splitlines() == [
        "ENGINE_ARGS: tp_size=4: wanted without tp_size: set TP_SIZE, PREFILL_TP or DECODE_TP",
        "DECODE_ENGINE_ARGS: incremental_streaming_output=False: wanted without"
        " incremental_streaming_output: the front reads increments",
    ]
    with pytest.raises(SettingsError, match="tp_size=4"):
        told(settings, on_gpus(Settings.from_env({})), "decode-0")


@pytest.mark.parametrize(
    ("asked", "kind", "installed", "expected"),
    [
        ("auto", "cpu", {"nixl", "mooncake"}, ("nixl", "it needs no library from the system")),
        (
            "auto",
            "cuda",
            {"nixl", "mooncake"},
            (
                "nixl",
                "measured on two H100, a whole request takes as long over it as over mooncake"
                " (30,000 tokens: 975 and 977 ms), and it needs neither RDMA hardware nor a library"
                " from the system",
            ),
        ),
        ("auto", "cpu", {"mooncake"}, ("mooncake", "nixl is not installed")),
        ("auto", "cuda", {"mooncake"}, ("mooncake", "nixl is not installed")),
        ("mooncake", "cpu", {"nixl", "mooncake"}, ("mooncake", "DISAGG_TRANSFER_BACKEND=mooncake")),
        ("nixl", "cuda", {"nixl"}, ("nixl", "DISAGG_TRANSFER_BACKEND=nixl")),
    ],
)
def test_the_transfer_and_why(
    asked: str, kind: Kind, installed: set[str], expected: tuple[str, str]
) -> None:
    settings = Settings.from_kwargs(disagg_transfer_backend=asked)
    assert choose_transfer(settings, kind, installed) == expected


@pytest.mark.parametrize(
    ("asked", "kind", "installed", "message"),
    [
        (
            "mooncake",
            "cpu",
            {"nixl"},
            "DISAGG_TRANSFER_BACKEND='mooncake': it is not installed; wanted pip install"
            " 'pd-eagle[mooncake-cpu]', or auto",
        ),
        (
            "mooncake",
            "cuda",
            {"nixl"},
            "DISAGG_TRANSFER_BACKEND='mooncake': it is not installed; wanted pip install"
            " 'pd-eagle[mooncake-cuda]', or auto",
        ),
        (
            "nixl",
            "cpu",
            {"mooncake"},
            "DISAGG_TRANSFER_BACKEND='nixl': it is not installed; wanted pip install nixl==1.5.1,"
            " or auto",
        ),
        (
            "auto",
            "cuda",
            set(),
            "DISAGG_TRANSFER_BACKEND='auto': neither nixl nor mooncake is installed; wanted"
            " pip install nixl==1.5.1 or 'pd-eagle[mooncake-cuda]'",
        ),
    ],
)
def test_a_transfer_that_is_missing_says_what_to_install(
    asked: str, kind: Kind, installed: set[str], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        choose_transfer(Settings.from_kwargs(disagg_transfer_backend=asked), kind, installed)
    assert caught.value.message == message


def test_installed_transfers_are_found_without_importing_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"nixl": ModuleSpec("nixl", None)}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    assert engine_args.installed_transfers() == {"nixl"}


@pytest.mark.parametrize(
    ("kind", "transfer", "ib_device", "names"),
    [
        ("cpu", "mooncake", None, set()),
        ("cuda", "nixl", None, {"CUDA_DEVICE_ORDER"}),
        ("cuda", None, None, {"CUDA_DEVICE_ORDER"}),
        ("cuda", "mooncake", "mlx5_0", {"CUDA_DEVICE_ORDER"}),
        (
            "cuda",
            "mooncake",
            None,
            {"CUDA_DEVICE_ORDER", "SGLANG_MOONCAKE_CUSTOM_MEM_POOL", "MC_INTRANODE_NVLINK"},
        ),
    ],
)
def test_the_variables_of_a_cuda_engine(
    kind: Kind, transfer: str | None, ib_device: str | None, names: set[str]
) -> None:
    assert environment(kind, transfer, ib_device).keys() == names


def test_engines_trace_where_the_front_does_and_can() -> None:
    url = "http://collector:4318/v1/traces"
    arguments, variables = engine_args.tracing(url, installed=True)
    assert arguments == {"enable_trace": True, "otlp_traces_endpoint": url}
    assert variables == {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    for without in ((None, True), (url, False), (None, False)):
        assert engine_args.tracing(without[0], installed=without[1]) == ({}, {})


@pytest.mark.parametrize("missing", engine_args._TRACING)
def test_engines_trace_only_with_every_exporter_that_sglang_imports(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> None:
        if name == missing:
            raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    assert engine_args.installed_tracing() is False
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: None)
    assert engine_args.installed_tracing() is True


def ask_sglang(given: list[dict[str, Any]], at: Path, variables: dict[str, str]) -> dict[str, Any]:
    script = Path(__file__).with_name("resolve_server_args.py")
    answer = at / "answer.json"
    done = subprocess.run(
        [sys.executable, str(script), str(answer)],
        input=json.dumps(given),
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(answer.read_text())
    return answered


def folder(at: Path, name: str, model_type: str) -> str:
    at.mkdir()
    (at / "config.json").write_text(json.dumps(CONFIGS[name] | {"model_type": model_type}))
    return str(at)


def documented_engines(at: Path) -> list[dict[str, Any]]:
    """The arguments of every engine that EAGLE with its defaults starts on 2, 4 and 8 H100."""
    settings = Settings.from_kwargs(speculative_algorithm="EAGLE", model_path=TARGET.name)
    paths = {
        "model_path": folder(at / "target", TARGET.name, "qwen2"),
        "draft_path": folder(at / "draft", DRAFT.name, "qwen2"),
    }
    return [
        told(settings, found, worker.name, transfer=transfer, bootstrap_port=8998, **paths)
        for found in (plan(settings, parse_gpus(f"{n}xH100"), TARGET, DRAFT) for n in (2, 4, 8))
        for transfer in ("nixl", "mooncake")
        for worker in found.workers
    ]


@pytest.mark.timeout(600)
def test_sglang_takes_the_documented_engines(tmp_path: Path) -> None:
    """What SGLang itself makes of the arguments, as far as it can be asked without a GPU.

    Not checked by this: the attention, sampling and MoE backends that SGLang chooses by the GPU's
    kind; the memory left for the KV pool and CUDA graphs; that the weights load with this TP; that
    the draft's weights fit the target's; that NIXL or Mooncake connect two GPUs.
    """
    given = documented_engines(tmp_path)
    answer = ask_sglang(given, tmp_path, {})
    known = set(answer["names"])
    assert {name for arguments in given for name in arguments} <= known
    # Names of one release that another may rename would be let through in silence.
    assert OWNED.keys() - known == {"model", "tp", "server_args"}
    assert len(given) == len(answer["results"]) == 2 * (2 + 4 + 8)
    for arguments, resolved in zip(given, answer["results"], strict=True):
        assert "error" not in resolved, resolved["error"]
        # Nothing that we set is decided otherwise by SGLang.
        assert {name: resolved[name] for name in arguments} == arguments


@pytest.mark.timeout(600)
def test_sglang_takes_the_engines_of_the_cpu(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", EMBEDDED.name, "llama")
    traced, _ = engine_args.tracing("http://collector:4318/v1/traces", installed=True)
    given = []
    for algorithm in (None, "EAGLE"):
        settings = Settings.from_kwargs(speculative_algorithm=algorithm)
        found = plan(settings, CPU, EMBEDDED)
        changes = {"shape": EMBEDDED, "model_path": model, "draft_path": model}
        given += [
            traced | told(settings, found, worker.name, **changes) for worker in found.workers
        ]
    answer = ask_sglang(given, tmp_path, cpu.environment(offline=True))
    for arguments, resolved in zip(given, answer["results"], strict=True):
        assert "error" not in resolved, resolved["error"]
        assert {name: resolved[name] for name in arguments} == arguments
