"""The settings of the front: HTTP, limits on requests, failures of workers, tracing.

It does not know where values come from, nor which of them go together.
"""

from __future__ import annotations

from dataclasses import dataclass

from pd_eagle.plan.setting import setting
from pd_eagle.plan.value_types import FLAG, KEYS, ORIGINS, TEXT, URL, one_of, seconds, whole


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """HTTP, its clients, and what the server says of itself."""

    host: str = setting(TEXT, "Address the HTTP port binds to.", "127.0.0.1", variable="PD_HOST")
    port: int = setting(
        whole(0, 65535), "HTTP port; 0 takes a free one.", 8000, variable="HATHORA_DEFAULT_PORT"
    )
    region: str | None = setting(
        TEXT, "Label in /health, logs and metrics.", variable="HATHORA_REGION"
    )
    served_model_name: str | None = setting(
        TEXT, "The model's name in the API.", shown="the model's own path"
    )
    api_key: str | None = setting(
        KEYS,
        "Key that every request must carry, or several with commas between.",
        prefixed=True,
        secret=True,
    )
    admin_api_key: str | None = setting(
        KEYS,
        "Key for routes that change the service or show how it is set up, such as /flush_cache and"
        " /server_info; unset, only clients on this host may use them.",
        prefixed=True,
        secret=True,
    )
    log_level: str = setting(
        one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        "Our log level and the engines'.",
        "INFO",
    )
    event_loop: str = setting(
        one_of("auto", "uvloop", "asyncio"),
        "Event loop of the front; auto takes uvloop for the server, where it is installed, and"
        " asyncio for PDEngine.",
        "auto",
        prefixed=True,
    )
    headers_timeout_s: float = setting(
        seconds(zero=False), "How long a client may take to send a request's headers.", 30.0
    )
    max_headers_bytes: int = setting(
        whole(1024), "Size of a request's headers; more get 431.", 64 * 1024
    )
    max_body_memory_bytes: int = setting(
        whole(16 * 2**20),
        "Memory for the bodies that are being read or parsed, of all requests together; more get "
        "503.",
        2**30,
    )
    body_timeout_s: float = setting(
        seconds(zero=False), "How long a client may take to send a request's body.", 60.0
    )
    write_timeout_s: float = setting(
        seconds(zero=False),
        "A client that leaves what it was sent unread for this long is disconnected.",
        120.0,
    )
    keep_alive_s: float = setting(
        seconds(zero=False), "How long an idle connection stays open.", 120.0
    )
    sse_keep_alive_s: float = setting(
        seconds(zero=True),
        "A stream that pauses sends an SSE comment before it has been silent for this long, so that"
        " proxies keep the connection; 0 for clients that cannot read comments.",
        15.0,
    )
    drain_timeout_s: float = setting(
        seconds(zero=True), "How long running requests may go on after SIGTERM.", 30.0
    )


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """How requests are read, and what is kept of them."""

    strict_fields: bool = setting(
        FLAG,
        "Refuse a request with a field that nothing here knows; else the response names it in its"
        " x-ignored-fields header, and it is logged once.",
        False,
    )
    cors_origins: str | None = setting(
        ORIGINS,
        "Web pages from these origins may call the API from a browser: https://host:port, several"
        " with commas between, or *.",
        shown="none",
    )
    system_preambles: str = setting(
        TEXT,
        "/v1/messages: lines at the beginning of `system` that begin with one of these (commas"
        " between) are left out. Agents put a header there that changes with every request: nothing"
        " after it would be found in the prefix cache. off leaves them in.",
        "x-anthropic-billing-header:",
    )
    response_store_bytes: int = setting(
        whole(0),
        '/v1/responses: memory for those that say "store": true; the oldest go.',
        64 * 2**20,
    )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """How many requests run and wait, and for how long."""

    max_inflight: int | None = setting(
        whole(1),
        "Requests that run at once.",
        prefixed=True,
        shown="from the plan's KV capacity",
    )
    max_queue: int | None = setting(
        whole(0), "Requests that may wait.", prefixed=True, shown="from the plan's KV capacity"
    )
    max_inflight_per_client: int | None = setting(
        whole(1),
        "Requests that one client (address) may have open, running or waiting; more get 429.",
        prefixed=True,
        shown="no limit",
    )
    prefill_window_tokens: int | None = setting(
        whole(0),
        "PD: prompt tokens outstanding in a prefill engine; more wait in the front, where short"
        " prompts go first and waiting counts. 0: no limit. About one or two chunks"
        " (chunked_prefill_size: 8192 on an H100) is what it is for.",
        shown="no limit",
    )
    queue_timeout_s: float = setting(
        seconds(zero=False), "How long a request may wait for its turn.", 30.0
    )
    request_timeout_s: float = setting(
        seconds(zero=False), "How long a request may take in all.", 600.0
    )


@dataclass(frozen=True, kw_only=True)
class FailureSettings:
    """Starts, failures of workers, and what is tried again."""

    retry_limit: int = setting(
        whole(0), "Further pairs to try when a worker fails a request.", 3, prefixed=True
    )
    resume: bool = setting(
        FLAG,
        "Continue on another pair when a decode worker dies in mid-answer.",
        True,
        prefixed=True,
    )
    restart_limit: int = setting(
        whole(0),
        "Restarts of one worker within five minutes before it is given up.",
        5,
        prefixed=True,
    )
    start_timeout_s: float = setting(
        seconds(zero=False),
        "A worker that is not ready after this long is killed: the start fails, or is tried again.",
        1800.0,
    )
    hang_timeout_s: float = setting(
        seconds(zero=False),
        "A worker that gives no sign of life for this long is killed and restarted.",
        30.0,
    )
    canary_interval_s: float = setting(
        seconds(zero=False),
        "An idle pair carries a token of ours this often, to show that its link works.",
        30.0,
    )
    failed_exit_s: float = setting(
        seconds(zero=False),
        "The server ends with exit code 5 when no pair has served for this long, and for twice as"
        " long as a start took while one goes on; /health/live is 503 from half of it on.",
        300.0,
    )
    fork_workers: bool = setting(
        FLAG,
        "Fork engines from a process that has SGLang imported: they start and restart sooner. Where"
        " that is not safe they are spawned all the same, and /health says why.",
        True,
    )


@dataclass(frozen=True, kw_only=True)
class TracingSettings:
    """Where spans go."""

    otlp_endpoint: str | None = setting(
        URL,
        "OpenTelemetry collector that gets spans, by HTTP, e.g. http://localhost:4318. Other OTEL_"
        " variables are read by OpenTelemetry itself.",
        variable="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    otlp_traces_endpoint: str | None = setting(
        URL,
        "The same, as the whole URL for spans.",
        variable="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        shown="OTEL_EXPORTER_OTLP_ENDPOINT/v1/traces",
    )
