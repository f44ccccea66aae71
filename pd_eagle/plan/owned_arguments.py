"""The arguments of `sglang.Engine` that are not the user's to set here, and what to do instead.

The plan, the handoff or the front's own half of the work depends on them. It does not know who set
them.
"""

from __future__ import annotations

_OF_THE_PLAN = "it is the plan's"
_SPLIT = "set TP_SIZE, PREFILL_TP or DECODE_TP"
_OF_THE_WORKER = "a worker's process sets its own"

#: Argument → why it is refused, or which setting takes its place.
OWNED = {
    "model_path": "set MODEL_PATH",
    "model": "set MODEL_PATH",
    "device": "set PD_DEVICE",
    "tp_size": _SPLIT,
    "tp": _SPLIT,
    "pp_size": _OF_THE_PLAN,
    "dp_size": "set UNIFIED_REPLICAS, PREFILL_REPLICAS or DECODE_REPLICAS",
    "nnodes": _OF_THE_PLAN,
    "node_rank": _OF_THE_PLAN,
    "dist_init_addr": _OF_THE_PLAN,
    "base_gpu_id": _OF_THE_PLAN,
    "gpu_id_step": _OF_THE_PLAN,
    "disaggregation_mode": "set PD_MODE",
    "disaggregation_transfer_backend": "set DISAGG_TRANSFER_BACKEND",
    "disaggregation_bootstrap_port": "set DISAGG_BOOTSTRAP_PORT",
    "disaggregation_ib_device": "set DISAGG_IB_DEVICE",
    "enable_pd_role_switch": _OF_THE_PLAN,
    "speculative_algorithm": "set SPECULATIVE_ALGORITHM",
    "speculative_draft_model_path": "set SPECULATIVE_DRAFT_MODEL_PATH",
    "speculative_num_steps": "set SPECULATIVE_NUM_STEPS",
    "speculative_eagle_topk": "set SPECULATIVE_EAGLE_TOPK",
    "speculative_num_draft_tokens": "set SPECULATIVE_NUM_DRAFT_TOKENS",
    "speculative_token_map": "set SPECULATIVE_TOKEN_MAP",
    "speculative_attention_mode": "set SPECULATIVE_ATTENTION_MODE",
    "speculative_adaptive": "set SPECULATIVE_ADAPTIVE",
    "speculative_adaptive_config": "set SPECULATIVE_ADAPTIVE_CONFIG",
    "context_length": "set CONTEXT_LENGTH",
    "mem_fraction_static": "set MEM_FRACTION_STATIC",
    "served_model_name": "set SERVED_MODEL_NAME",
    "tool_call_parser": "set TOOL_CALL_PARSER",
    "reasoning_parser": "set REASONING_PARSER",
    "log_level": "set LOG_LEVEL",
    "api_key": "set PD_API_KEY",
    "host": "set PD_HOST",
    "port": "set HATHORA_DEFAULT_PORT",
    "incremental_streaming_output": "the front reads increments",
    "skip_tokenizer_init": "the engines make the text",
    "tokenizer_worker_num": "one engine has one tokenizer",
    "custom_sigquit_handler": _OF_THE_WORKER,
    "use_ray": "every engine is a process of this host",
    "server_args": "give its fields as keyword arguments",
}

#: What SGLang itself takes for those that no setting replaces: given so, they ask for nothing.
SGLANG_DEFAULTS = {
    "pp_size": 1,
    "dp_size": 1,
    "nnodes": 1,
    "node_rank": 0,
    "dist_init_addr": None,
    "base_gpu_id": 0,
    "gpu_id_step": 1,
    "disaggregation_mode": "null",
    "enable_pd_role_switch": False,
    "incremental_streaming_output": False,
    "skip_tokenizer_init": False,
    "tokenizer_worker_num": 1,
    "custom_sigquit_handler": None,
    "use_ray": False,
}

#: Those that are settings here, under another name.
RENAMED = {
    "disaggregation_transfer_backend": "disagg_transfer_backend",
    "disaggregation_bootstrap_port": "disagg_bootstrap_port",
    "disaggregation_ib_device": "disagg_ib_device",
}
