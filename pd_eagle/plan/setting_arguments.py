"""The settings as keyword arguments. Written by tools/arguments.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingArguments(TypedDict, total=False):
    """Every setting; unset, or None, is its default (`pd-eagle serve --help`)."""

    host: str | None
    port: int | None
    region: str | None
    served_model_name: str | None
    api_key: str | None
    admin_api_key: str | None
    log_level: str | None
    event_loop: str | None
    headers_timeout_s: float | None
    max_headers_bytes: int | None
    max_body_memory_bytes: int | None
    body_timeout_s: float | None
    write_timeout_s: float | None
    keep_alive_s: float | None
    sse_keep_alive_s: float | None
    drain_timeout_s: float | None
    strict_fields: bool | None
    cors_origins: str | None
    system_preambles: str | None
    response_store_bytes: int | None
    model_path: str | None
    device: str | None
    context_length: int | None
    mem_fraction_static: float | None
    tool_call_parser: str | None
    reasoning_parser: str | None
    cpu_threads: int | None
    cpu_untested_models: bool | None
    engine_args: Mapping[str, Any] | None
    prefill_engine_args: Mapping[str, Any] | None
    decode_engine_args: Mapping[str, Any] | None
    pd_mode: str | None
    enable_pd_defaults: bool | None
    tp_size: int | None
    unified_replicas: int | None
    prefill_replicas: int | None
    prefill_tp: int | None
    decode_replicas: int | None
    decode_tp: int | None
    disagg_bootstrap_port: int | None
    disagg_ib_device: str | None
    disagg_transfer_backend: str | None
    speculative_algorithm: str | None
    speculative_draft_model_path: str | None
    speculative_num_steps: int | None
    speculative_eagle_topk: int | None
    speculative_num_draft_tokens: int | None
    speculative_token_map: str | None
    speculative_adaptive: bool | None
    speculative_adaptive_config: str | None
    speculative_attention_mode: str | None
    max_inflight: int | None
    max_queue: int | None
    max_inflight_per_client: int | None
    prefill_window_tokens: int | None
    queue_timeout_s: float | None
    request_timeout_s: float | None
    retry_limit: int | None
    resume: bool | None
    restart_limit: int | None
    start_timeout_s: float | None
    hang_timeout_s: float | None
    canary_interval_s: float | None
    failed_exit_s: float | None
    fork_workers: bool | None
    otlp_endpoint: str | None
    otlp_traces_endpoint: str | None
