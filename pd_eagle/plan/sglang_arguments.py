"""SGLang's `ServerArgs` (0.5.23) without what are settings. By tools/arguments.py."""

from __future__ import annotations

from typing import Any, TypedDict


class SGLangArguments(TypedDict, total=False):
    """As `sglang.Engine` takes them; the engines check their values."""

    random_seed: int | None
    mlx_enable_sampling: bool
    watchdog_timeout: float
    soft_watchdog_timeout: float | None
    sleep_on_idle: bool
    numa_node: Any
    gc_threshold: Any
    decoupled_spec_bind_endpoint: str | None
    decoupled_spec_connect_endpoints: Any
    decoupled_spec_rank: int | None
    decoupled_spec_role: Any
    disaggregation_decode_allocation_policy: Any
    disaggregation_transfer_backend: str
    disaggregation_enable_kv_checksum: bool
    disaggregation_bootstrap_port: int
    disaggregation_ib_device: str | None
    disaggregation_decode_enable_radix_cache: bool
    disaggregation_decode_enable_offload_kvcache: bool
    disaggregation_decode_retraction_backup: str | None
    num_reserved_decode_tokens: int
    disaggregation_decode_extra_slots: int | None
    disaggregation_decode_polling_interval: int
    optimistic_prefill_attempts: int
    encoder_only: bool
    language_only: bool
    language_model_only: bool
    encoder_transfer_backend: str
    encoder_urls: Any
    encoder_bootstrap_port: int
    encoder_register_urls: Any
    enable_adaptive_dispatch_to_encoder: bool
    enable_pdmux: bool
    pdmux_config_path: str | None
    sm_group_num: int
    disaggregation_decode_host_receive_threshold: float
    enable_fp32_lm_head: bool
    enable_tf32_matmul: bool | None
    enable_memory_saver: bool
    enable_weights_cpu_backup: bool
    enable_draft_weights_cpu_backup: bool
    enable_custom_logit_processor: bool
    enable_watermark: bool
    watermark_config: str | None
    watermark_key: str | None
    watermark_key_b: str | None
    watermark_context_window: int
    watermark_mixing_probability: float
    watermark_max_probability: float
    watermark_default_enabled: bool
    watermark_enforce_all: bool
    enable_return_hidden_states: bool
    return_hidden_states_mode: str | None
    enable_return_aux_hidden_states: bool
    aux_hidden_state_capture: str | None
    return_aux_hidden_state_layer_ids: Any
    enable_return_routed_experts: bool
    enable_return_indexer_topk: bool
    enable_encoder_swa_bounded_replay: bool
    enable_decoder_swa_bounded_replay: bool | None
    sampling_mask_max_tokens: int
    disable_outlines_disk_cache: bool
    enable_mis: bool
    attention_backend: str | None
    decode_attention_backend: str | None
    enable_lean_attention: bool | None
    enable_nvidia_megakernel: bool
    enable_amd_monokernel: bool
    prefill_attention_backend: str | None
    prefill_kv_cache_dequant_dtype: str
    sampling_backend: str | None
    grammar_backend: str | None
    fp8_gemm_runner_backend: str
    fp4_gemm_runner_backend: str
    bf16_gemm_backend: str
    dsa_prefill_backend: str | None
    dsv4_prefill_backend: str
    dsa_triton_union: int
    dsa_decode_backend: str | None
    dsv4_attn_backend: str
    dsa_paged_mqa_logits_backend: str
    dsa_topk_backend: str
    disable_flashinfer_autotune: bool
    flashinfer_autotune_skip_ops: Any
    triton_attention_reduce_in_fp32: bool
    triton_attention_num_kv_splits: int
    triton_attention_split_tile_size: int | None
    flashinfer_mla_disable_ragged: bool
    enable_fused_qk_norm_rope: bool | None
    enable_precise_embedding_interpolation: bool
    enable_deepseek_v4_fp4_indexer: bool
    enable_dsa_fused_indexer: bool | None
    mamba_backend: str
    mamba_ssm_dtype: str | None
    mamba_max_states_per_path: int
    enable_mamba_cache_stochastic_rounding: bool
    mamba_cache_philox_rounds: int
    mamba_radix_cache_strategy: str
    uses_mamba_radix_cache: bool
    mamba_track_interval: int
    enable_int8_mamba_checkpoint: bool
    int8_mamba_ckpt_size: int | None
    linear_attn_backend: str
    linear_attn_decode_backend: str | None
    linear_attn_prefill_backend: str | None
    linear_attn_verify_backend: str | None
    enable_linear_replayssm: bool
    linear_replayssm_cache_len: int
    enable_linear_replayssm_spec: bool
    cuda_graph_config: Any
    cuda_graph_backend_decode: Any
    cuda_graph_backend_prefill: Any
    cuda_graph_max_bs_decode: int | None
    cuda_graph_max_bs_prefill: int | None
    cuda_graph_max_seq_len_prefill: int | None
    cuda_graph_bs_decode: Any
    cuda_graph_bs_prefill: Any
    cuda_graph_prefill_max_context: int | None
    disable_prefill_cuda_graph: bool
    disable_decode_cuda_graph: bool
    disable_cuda_graph: bool
    disable_cuda_graph_padding: bool
    enable_profile_cuda_graph: bool
    enable_cudagraph_gc: bool
    debug_cuda_graph: bool
    enable_torch_compile: bool
    enable_torch_compile_debug_mode: bool
    torch_compile_max_bs: int
    enable_layerwise_nvtx_marker: bool
    enable_nccl_nvls: bool
    enable_symm_mem: bool
    disable_custom_all_reduce: bool
    enable_mscclpp: bool
    enable_torch_symm_mem: bool
    enable_scattered_sconv: bool
    pre_warm_nccl: bool
    boundary_reduction: Any
    enable_quant_communications: bool | None
    enable_flashinfer_allreduce_fusion: bool
    enforce_disable_flashinfer_allreduce_fusion: bool
    flashinfer_allreduce_fusion_backend: Any
    enable_aiter_allreduce_fusion: bool
    disable_aiter_allreduce_fusion_in_prefill: bool
    disable_aiter_allreduce_fusion_in_decode: bool
    enable_fused_moe_sum_all_reduce: bool
    moe_a2a_backend: Any
    enable_w4a4_mxfp4_megamoe: bool
    deepep_v2_mode: Any
    moe_runner_backend: str
    flashinfer_mxfp4_moe_precision: Any
    deepep_mode: Any
    fuseep_mode: Any
    deepep_dispatcher_output_dtype: Any
    flashinfer_a2a_dispatch_type: Any
    ep_num_redundant_experts: int
    ep_dispatch_algorithm: Any
    init_expert_location: str
    enable_eplb: bool
    eplb_algorithm: str
    eplb_rebalance_num_iterations: int
    eplb_rebalance_layers_per_chunk: int | None
    eplb_min_rebalancing_utilization_threshold: float
    expert_distribution_recorder_mode: Any
    expert_distribution_recorder_buffer_size: int | None
    expert_balancedness_report_mode: Any
    deepep_config: str | None
    elastic_ep_backend: Any
    enable_elastic_expert_backup: bool
    mooncake_ib_device: str | None
    enable_waterfill: bool
    ep_join_mode: Any
    elastic_ep_scale_timeout: float
    disable_flashinfer_cutlass_moe_fp4_allgather: bool
    disable_shared_experts_fusion: bool
    enforce_shared_experts_fusion: bool
    enable_paged_experts: bool
    paged_experts_num_resident: int | None
    kt_weight_path: str | None
    kt_method: str
    kt_cpuinfer: int | None
    kt_threadpool_count: int
    kt_num_gpu_experts: int | None
    kt_max_deferred_experts_per_token: int | None
    enable_two_batch_overlap: bool
    enable_single_batch_overlap: bool
    tbo_token_distribution_threshold: float
    cpu_offload_gb: int
    offload_group_size: int
    offload_num_in_group: int
    offload_prefetch_step: int
    offload_mode: str
    ple_offload_embedding: bool | None
    ple_offload_backend: str
    ple_offload_dir: str | None
    dllm_algorithm: str | None
    dllm_algorithm_config: str | None
    dllm_fdfo: bool
    enable_deterministic_inference: bool
    rl_on_policy_target: str | None
    enable_lora: bool | None
    enable_lora_overlap_loading: bool | None
    max_lora_rank: int | None
    lora_target_modules: Any
    lora_paths: Any
    max_loaded_loras: int | None
    max_loras_per_batch: int
    lora_eviction_policy: str
    lora_backend: str
    max_lora_chunk_size: int | None
    experts_shared_outer_loras: bool | None
    lora_use_virtual_experts: bool
    lora_strict_loading: bool
    lora_drain_wait_threshold: float
    radix_eviction_policy: str
    radix_eviction_policy_config: Any
    disable_radix_cache: bool
    enable_page_major_kv_layout: bool
    enable_unified_memory: bool
    enable_session_radix_cache: bool
    radix_cache_backend: str | None
    enable_hierarchical_cache: bool
    hicache_host_memory_mode: str
    hicache_ratio: float | None
    hicache_size: int
    hicache_host_memory_fraction: float | None
    hicache_write_policy: str
    hicache_io_backend: str
    hicache_mem_layout: str
    hicache_storage_backend: str | None
    hicache_storage_prefetch_policy: str
    hicache_storage_backend_extra_config: str | None
    hicache_storage_prefetch_retry_poll_interval: int
    hicache_storage_prefetch_retry_max_attempts: int
    enable_unified_cache_external_linker: bool
    unified_cache_external_linker_backend: str
    unified_cache_external_linker_config: Any
    enable_linker_mla_dedup: bool
    enable_hisparse: bool
    hisparse_config: str | None
    enable_lmcache: bool
    lmcache_config_file: str | None
    enable_flexkv: bool
    flexkv_config_file: str | None
    enable_multimodal: bool | None
    mm_attention_backend: str | None
    enable_broadcast_mm_inputs_process: bool
    enable_prefix_mm_cache: bool
    mm_enable_dp_encoder: bool | None
    mm_process_config: Any
    mm_processor_worker_num: int
    mm_io_worker_num: int
    allowed_media_domains: Any
    media_url_max_file_size_mb: int
    mm_preprocess_cache_size_mb: int | None
    trust_mm_content_hashes: bool
    limit_mm_data_per_request: Any
    enable_mm_global_cache: bool
    image_processor_backend: Any
    mm_global_cache_backend: str
    disable_fast_image_processor: bool
    mm_feature_transport: Any
    load_format: str
    model_loader_extra_config: str
    trust_remote_code: bool
    is_embedding: bool
    revision: str | None
    model_impl: str
    model_config_parser: str
    json_model_override_args: str
    dtype: str
    quantization: str | None
    quantization_param_path: str | None
    kv_cache_dtype: str
    qsa_indexer_dtype: str
    modelopt_quant: Any
    modelopt_checkpoint_restore_path: str | None
    modelopt_checkpoint_save_path: str | None
    modelopt_export_path: str | None
    quantize_and_serve: bool
    rl_quant_profile: str | None
    startup_weight_load_mode: Any
    custom_weight_loader: Any
    weight_loader_disable_mmap: bool
    weight_loader_prefetch_checkpoints: bool
    weight_loader_prefetch_num_threads: int
    weight_loader_drop_cache_after_load: bool
    remote_instance_weight_loader_seed_instance_ip: str | None
    remote_instance_weight_loader_seed_instance_service_port: int | None
    remote_instance_weight_loader_send_weights_group_ports: Any
    remote_instance_weight_loader_backend: Any
    remote_instance_weight_loader_start_seed_via_transfer_engine: bool
    engine_info_bootstrap_port: int
    modelexpress_config: str | None
    download_dir: str | None
    model_checksum: str | None
    delete_ckpt_after_loading: bool
    decrypted_config_file: str | None
    decrypted_draft_config_file: str | None
    checkpoint_engine_wait_weights_before_ready: bool
    weight_cache_mode: str
    weight_cache_socket: str | None
    weight_cache_timeout: int
    log_level_http: str | None
    log_requests: bool
    log_requests_level: int
    log_requests_format: str
    log_requests_target: Any
    uvicorn_access_log_exclude_prefixes: Any
    crash_dump_folder: str | None
    show_time_cost: bool
    enable_metrics: bool
    smg_http_sidecar_port: int | None
    enable_mfu_metrics: bool
    enable_metrics_for_all_schedulers: bool
    load_snapshot_publish_interval: int
    tokenizer_metrics_custom_labels_header: str
    tokenizer_metrics_allowed_custom_labels: Any
    extra_metric_labels: Any
    bucket_time_to_first_token: Any
    bucket_inter_token_latency: Any
    bucket_e2e_request_latency: Any
    prompt_tokens_buckets: Any
    generation_tokens_buckets: Any
    gc_warning_threshold_secs: float
    decode_log_interval: int
    enable_request_time_stats_logging: bool
    kv_events_config: str | None
    load_publish_endpoint: str | None
    enable_forward_pass_metrics: bool
    forward_pass_metrics_worker_id: str
    forward_pass_metrics_ipc_name: str | None
    enable_trace: bool
    trace_modules: str
    otlp_service_name: str | None
    export_metrics_to_file: bool
    export_metrics_to_file_dir: str | None
    stat_loggers: Any
    kv_canary: str
    kv_canary_real_data: str
    kv_canary_sweep_interval: int
    debug_tensor_dump_output_folder: str | None
    debug_tensor_dump_layers: Any
    debug_tensor_dump_input_file: str | None
    forward_hooks: Any
    msprobe_dump_config: str | None
    nccl_port: int | None
    dist_timeout: int | None
    gated_launch_port: int | None
    dcp_size: int
    pp_max_micro_batch_size: int | None
    pp_async_batch_depth: int
    attn_dp_size: int
    load_balance_method: str
    attn_cp_size: int
    moe_dp_size: int
    dwdp_size: int
    dcp_comm_backend: str | None
    dcp_replicate_q_proj: bool | None
    enable_prefill_cp: bool
    cp_strategy: str | None
    enable_cp_tp_group_sharing: bool
    enable_dsa_cache_layer_split: bool
    enable_cp_decode_attn_tp: bool
    enable_kv_cache_sharding: bool
    enable_dp_attention: bool
    enable_dp_attention_local_control_broadcast: bool
    enable_dp_lm_head: bool
    enable_tp_lm_head_all_to_all: bool | None
    enable_attn_tp_input_scattered: bool
    enable_shared_experts_attn_tp: bool
    shared_experts_tp_size: int | None
    enable_dense_mlp_attn_tp: bool
    enable_layernorm_sp: bool
    enable_megamoe_for_layernorm_sp: bool
    disable_attn_tp_gather: bool
    enable_p2p_check: bool
    ep_size: int
    moe_dense_tp_size: int | None
    ep_join_rank_offset: int
    elastic_ep_initial_size: int | None
    max_ep_size: int | None
    max_running_requests: int | None
    max_queued_requests: int | None
    max_total_tokens: int | None
    chunked_prefill_size: int | None
    prefill_decode_interval: int | None
    prefill_decode_interval_min_bs: int
    enable_dynamic_chunking: bool
    max_prefill_tokens: int
    prefill_max_requests: int | None
    schedule_policy: str
    enable_priority_scheduling: bool
    disable_priority_preemption: bool
    default_priority_value: int | None
    abort_on_priority_when_disabled: bool
    schedule_low_priority_values_first: bool
    priority_scheduling_preemption_threshold: int
    retraction_policy: str
    schedule_conservativeness: float
    page_size: int | None
    c128_page_size: int
    swa_full_tokens_ratio: float | None
    swa_prefix_tails: int | None
    disable_hybrid_swa_memory: bool
    prefill_only_disable_kv_cache: bool
    disable_chunked_prefix_cache: bool
    disable_overlap_schedule: bool
    num_continuous_decode_steps: int
    scheduler_recv_interval: int
    enable_mixed_chunk: bool
    max_mamba_cache_size: int | None
    mamba_full_memory_ratio: float | None
    enable_prefill_delayer: bool
    prefill_delayer_max_delay_passes: int
    prefill_delayer_token_usage_low_watermark: float | None
    prefill_delayer_forward_passes_buckets: Any
    prefill_delayer_wait_seconds_buckets: Any
    prefill_delayer_queue_min_ratio: float | None
    prefill_delayer_max_delay_ms: float | None
    min_free_slots_delay: int | None
    enable_response_store: bool
    tokenizer_path: str | None
    tokenizer_mode: str
    tokenizer_backend: str
    detokenizer_worker_num: int
    fastapi_root_path: str
    enable_http_worker_reuseport: bool
    smg_grpc_mode: bool
    grpc_mode: bool
    grpc_port: int | None
    grpc_response_timeout_secs: int
    grpc_worker_threads: int | None
    sidecar: str | None
    sidecar_args: Any
    skip_server_warmup: bool
    warmups: str | None
    enable_http2: bool
    http2_max_concurrent_streams: int
    http2_initial_connection_window_size: int
    ssl_keyfile: str | None
    ssl_certfile: str | None
    ssl_ca_certs: str | None
    ssl_keyfile_password: str | None
    enable_ssl_refresh: bool
    weight_version: str
    chat_template: str | None
    trust_request_chat_template: bool
    hf_chat_template_name: str | None
    completion_template: str | None
    file_storage_path: str | None
    enable_cache_report: bool
    return_input_ids: bool
    return_output_ids: bool
    default_chat_template_kwargs: Any
    strip_thinking_cache: bool
    enable_strict_thinking: bool
    tool_server: str | None
    sampling_defaults: str
    asr_max_buffer_seconds: int
    asr_max_concurrent_sessions: int
    preferred_sampling_params: str | None
    allow_auto_truncate: bool
    stream_interval: int
    batch_notify_size: int
    stream_response_default_include_usage: bool
    enable_streaming_session: bool
    constrained_json_whitespace_pattern: str | None
    constrained_json_disable_any_whitespace: bool
    constrained_json_max_whitespace_cnt: int | None
    enable_dynamic_batch_tokenizer: bool
    dynamic_batch_tokenizer_batch_size: int
    dynamic_batch_tokenizer_batch_timeout: float
    enable_tokenizer_batch_encode: bool
    disable_tokenizer_batch_decode: bool
    uno_lora_path: str | None
    speculative_boundary_reduction: Any
    speculative_draft_model_revision: str | None
    speculative_draft_load_format: str | None
    speculative_dflash_block_size: int | None
    speculative_domino_candidate_pool_size: int
    speculative_dspark_block_size: int | None
    speculative_dspark_sps_table_path: str | None
    speculative_dspark_confidence_sts_path: str | None
    speculative_dspark_align_verify_tokens_to_graph_tier: bool
    speculative_accept_threshold_single: float
    speculative_accept_threshold_acc: float
    speculative_use_rejection_sampling: bool
    speculative_use_block_verification: bool
    speculative_draft_attention_backend: str | None
    speculative_dsa_topk_backend: str
    speculative_draft_kv_cache_dtype: str | None
    speculative_draft_window_size: int | None
    speculative_draft_sink_size: int | None
    speculative_moe_runner_backend: str | None
    speculative_moe_a2a_backend: str | None
    speculative_enable_w4a4_mxfp4_megamoe: bool | None
    speculative_draft_model_quantization: str | None
    enable_multi_layer_eagle: bool
    spec_trace_dir: str | None
    speculative_ngram_min_bfs_breadth: int
    speculative_ngram_max_bfs_breadth: int
    speculative_ngram_match_type: Any
    speculative_ngram_max_trie_depth: int
    speculative_ngram_capacity: int
    speculative_ngram_external_corpus_path: str | None
    speculative_ngram_external_sam_budget: int
    speculative_ngram_external_corpus_max_tokens: int
