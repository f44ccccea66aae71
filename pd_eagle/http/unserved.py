"""The routes of SGLang's server (0.5.23) that are refused here, with the reason.

It does not know how a refusal is sent.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a route is not served; `status` is 400 where SGLang's own server says so too."""

    reason: str
    methods: tuple[str, ...] = ("POST",)
    status: int = 501


_EITHER = ("GET", "POST")
_NO_EMBEDDINGS = "the model generates text: it makes no embeddings and has no classification head"
_WEIGHTS = (
    "weights cannot be changed while engines serve: prefill and decode would answer with different "
    "ones; restart the server with another MODEL_PATH"
)
_MEMORY = "an engine keeps its memory while it serves: a pair without one half hangs its requests"
_LORA = "LoRA adapters are not loaded here; merge them into the model"
_SESSION = "sessions live in one engine; two engines answer a request here"
_EXPERTS = "expert distribution is recorded by a single engine with its own file"
_HICACHE = "hierarchical caches are not set up here"
_CORPUS = "n-gram speculation is not offered: EAGLE and EAGLE3 are"
_TRANSFER = "weights are not sent to other instances from here"
_INTERNAL = "engines are configured when the server starts: ENGINE_ARGS"
_PARSE = (
    "text is parsed as part of an answer (tools, TOOL_CALL_PARSER, REASONING_PARSER), not by itself"
)
_DECISIONS = "decisions are scores of single tokens: wanted POST /v1/score"
_AUDIO = "the model takes text alone"
_PAUSE = "a paused engine looks hung, and is restarted; drain the server with SIGTERM"
_ELASTIC = "expert parallelism cannot be scaled while engines serve; restart with other settings"

UNSERVED: dict[str, Refusal] = {
    **dict.fromkeys(("/encode", "/classify"), Refusal(_NO_EMBEDDINGS, ("POST", "PUT"), 400)),
    **dict.fromkeys(("/v1/embeddings", "/v1/classify"), Refusal(_NO_EMBEDDINGS, status=400)),
    "/v1/rerank": Refusal(_NO_EMBEDDINGS, ("POST", "PUT"), 400),
    **dict.fromkeys(
        (
            *("/update_weights_from_disk", "/init_weights_update_group"),
            *("/destroy_weights_update_group", "/update_weights_from_tensor"),
            *("/begin_weight_update", "/end_weight_update", "/update_weights_from_distributed"),
            *("/update_weights_from_ipc", "/update_weight_version"),
        ),
        Refusal(_WEIGHTS),
    ),
    **dict.fromkeys(("/get_weights_by_name", "/weights_checker"), Refusal(_WEIGHTS, _EITHER)),
    **dict.fromkeys(
        ("/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance"),
        Refusal(_TRANSFER),
    ),
    **dict.fromkeys(
        (
            "/get_remote_instance_transfer_engine_info",
            "/remote_instance_transfer_engine_info",
        ),
        Refusal(_TRANSFER, ("GET",)),
    ),
    **dict.fromkeys(
        ("/release_memory_occupation", "/resume_memory_occupation"), Refusal(_MEMORY, _EITHER)
    ),
    **dict.fromkeys(
        ("/load_lora_adapter", "/load_lora_adapter_from_tensors", "/unload_lora_adapter"),
        Refusal(_LORA),
    ),
    **dict.fromkeys(("/open_session", "/close_session"), Refusal(_SESSION, _EITHER)),
    **dict.fromkeys(
        (
            "/start_expert_distribution_record",
            "/stop_expert_distribution_record",
            "/dump_expert_distribution_record",
        ),
        Refusal(_EXPERTS, _EITHER),
    ),
    "/hicache/storage-backend": Refusal(_HICACHE, ("GET", "PUT", "DELETE")),
    "/hicache/storage-backend/clear": Refusal(_HICACHE),
    "/get_hicache_l3_cache_layout": Refusal(_HICACHE, ("GET",)),
    "/scale_elastic_ep": Refusal(_ELASTIC),
    "/is_scaling_elastic_ep": Refusal(_ELASTIC, ("GET",)),
    **dict.fromkeys(("/add_external_corpus", "/remove_external_corpus"), Refusal(_CORPUS)),
    "/list_external_corpora": Refusal(_CORPUS, ("GET",)),
    "/set_internal_state": Refusal(_INTERNAL, ("POST", "PUT")),
    **dict.fromkeys(
        ("/set_trace_level", "/freeze_gc", "/configure_logging", "/slow_down"),
        Refusal(_INTERNAL, _EITHER),
    ),
    "/pd_role_switch": Refusal("the plan decides each engine's role: PREFILL_REPLICAS and others"),
    **dict.fromkeys(("/parse_function_call", "/separate_reasoning"), Refusal(_PARSE)),
    **dict.fromkeys(("/v1/decisions", "/v1/systemone"), Refusal(_DECISIONS)),
    "/v1/audio/transcriptions": Refusal(_AUDIO),
    **dict.fromkeys(("/pause_generation", "/continue_generation"), Refusal(_PAUSE)),
}
