"""The settings of the engines: the model, the split into prefill and decode, EAGLE.

It does not know where values come from, nor which of them go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.plan import known_models
from pd_eagle.plan.setting import setting
from pd_eagle.plan.value_types import (
    FILE,
    FLAG,
    FRACTION,
    INTERFACES,
    OBJECT,
    PATH,
    TEXT,
    one_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MODEL = known_models.DEFAULT
DEFAULT_BOOTSTRAP_PORT = 8998

# SGLang 0.5.23, srt/disaggregation/utils.py: the metadata buffers that carry the draft's first
# candidates from prefill to decode have 16 columns.
MAX_EAGLE_TOPK = 16


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model, and what its engines run on."""

    model_path: str | None = setting(
        PATH,
        "The model to serve. Unset on a machine with no GPU: the embedded model.",
        shown=DEFAULT_MODEL,
    )
    device: str = setting(
        one_of("auto", "cuda", "cpu"),
        "auto takes the GPUs where there are any.",
        "auto",
        prefixed=True,
    )
    context_length: int | None = setting(
        whole(1), "Longest prompt and answer, in tokens.", shown="the model's own"
    )
    mem_fraction_static: float | None = setting(
        FRACTION, "Share of a GPU's memory for weights and KV.", shown="SGLang's own"
    )
    tool_call_parser: str | None = setting(
        TEXT, "SGLang's parser of tool calls.", shown="the model's, where it is known"
    )
    reasoning_parser: str | None = setting(TEXT, "SGLang's parser of reasoning.")
    cpu_threads: int = setting(
        whole(1), "Threads that each engine calculates with; on a CPU alone.", 1
    )
    cpu_untested_models: bool = setting(
        FLAG,
        "Start a model on the CPU though it was not held against transformers there: it may answer"
        " otherwise, or die at its first request.",
        False,
    )
    engine_args: Mapping[str, Any] = setting(
        OBJECT, "Further arguments of sglang.Engine, for every engine.", {}
    )
    prefill_engine_args: Mapping[str, Any] = setting(
        OBJECT, "The same, for prefill engines alone.", {}
    )
    decode_engine_args: Mapping[str, Any] = setting(
        OBJECT, "The same, for decode engines alone.", {}
    )


@dataclass(frozen=True, kw_only=True)
class PDSettings:
    """Whether prefill and decode are separated, on which split of the GPUs, and over what."""

    pd_mode: str = setting(
        one_of("auto", "on", "off"),
        "auto: PD when all visible GPUs are H100 and there are 2, 4 or 8 of them.",
        "auto",
    )
    enable_pd_defaults: bool = setting(FLAG, "false: auto never chooses PD by itself.", True)
    tp_size: int | None = setting(
        whole(1), "Set: unified engines of that TP; one, unless UNIFIED_REPLICAS says more."
    )
    unified_replicas: int | None = setting(
        whole(1),
        "Set: that many unified engines (of TP_SIZE each) behind this one port, and no PD.",
        shown="one, where there is no PD",
    )
    prefill_replicas: int | None = setting(
        whole(1), "Prefill workers, by hand.", shown="the plan's"
    )
    prefill_tp: int | None = setting(
        whole(1), "TP of a prefill worker, by hand.", shown="the plan's"
    )
    decode_replicas: int | None = setting(whole(1), "Decode workers, by hand.", shown="the plan's")
    decode_tp: int | None = setting(whole(1), "TP of a decode worker, by hand.", shown="the plan's")
    disagg_bootstrap_port: int | None = setting(
        whole(1, 65535),
        "Bootstrap port of the first prefill worker, which must be free when it is set here;"
        " the others take the next free ones.",
        shown=f"{DEFAULT_BOOTSTRAP_PORT}, or the next free one",
    )
    disagg_ib_device: str | None = setting(
        INTERFACES, "RDMA devices for the KV transfer, e.g. mlx5_0,mlx5_1."
    )
    disagg_transfer_backend: str = setting(
        one_of("auto", "mooncake", "nixl"), "What carries the KV; auto says why.", "auto"
    )


@dataclass(frozen=True, kw_only=True)
class EagleSettings:
    """Speculative decoding."""

    speculative_algorithm: str | None = setting(
        one_of("EAGLE", "EAGLE3"), "Turns speculative decoding on."
    )
    speculative_draft_model_path: str | None = setting(
        PATH, "The draft model.", shown="the known draft of a known model"
    )
    speculative_num_steps: int = setting(
        whole(1), "Depth of the draft's tree.", 2, shown="2; on GPUs 3, if none of the three is set"
    )
    speculative_eagle_topk: int = setting(
        whole(1, MAX_EAGLE_TOPK),
        "Branches at each step; PD carries at most 16.",
        6,
        shown="6; on GPUs 1, if none of the three is set",
    )
    speculative_num_draft_tokens: int = setting(
        whole(2),
        "Tokens verified at once. At most what the tree holds; steps + 1 for topk 1.",
        10,
        shown="10; on GPUs 4, if none of the three is set",
    )
    speculative_token_map: str | None = setting(
        FILE, "The draft's small vocabulary: JSON list of token ids, or SGLang's .pt file."
    )
    speculative_adaptive: bool = setting(
        FLAG,
        "SGLang changes the number of steps with acceptance and batch size; needs topk 1, and"
        " SPECULATIVE_NUM_STEPS 1, 3, 5 or 7 to begin with.",
        False,
    )
    speculative_adaptive_config: str | None = setting(
        PATH, "SGLang's JSON file of candidate steps by batch size.", shown="SGLang's own"
    )
    speculative_attention_mode: str = setting(
        one_of("prefill", "decode"), "Attention kernels that verify the draft.", "prefill"
    )
