"""What the user asked for, from a passed-in mapping or from keyword arguments.

The class `Settings` is the one table of names, defaults, forms and explanations: parsing, checks
and `--help` read it. It is the only module that knows a variable's name, and it never looks at the
process's own environment: the caller passes it in. It knows nothing of GPUs, models or SGLang.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pd_eagle.errors import SettingsError
from pd_eagle.plan import known_models, value_types
from pd_eagle.plan.unknown_names import is_mistaken, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pd_eagle.plan.value_types import Form

DEFAULT_MODEL = known_models.DEFAULT
DEFAULT_BOOTSTRAP_PORT = 8998

# SGLang 0.5.23, srt/disaggregation/utils.py: the metadata buffers that carry the draft's first
# candidates from prefill to decode have 16 columns.
MAX_EAGLE_TOPK = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: how a field is called outside, what it takes and what it is for."""

    field: str
    variable: str
    default: Any
    form: Form
    doc: str
    shown_default: str
    secret: bool

    def problem(self, name: str, value: object) -> str:
        """Return the line that tells the user what is wrong with `value`, given as `name`."""
        shown = "'***'" if self.secret else repr(value)
        return f"{name}={shown}: wanted {self.form.wanted}"


def _setting(
    form: Form,
    doc: str,
    default: Any = None,
    *,
    variable: str | None = None,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    row = {"form": form, "doc": doc, "variable": variable, "shown": shown, "secret": secret}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=row)
    return dataclasses.field(default=default, metadata=row)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """Everything the user can set, checked.

    Build it with `from_env` or `from_kwargs`; the constructor itself checks nothing.
    """

    host: str = _setting(
        value_types.TEXT, "Address the HTTP port binds to.", "127.0.0.1", variable="PD_HOST"
    )
    port: int = _setting(
        value_types.whole(0, 65535),
        "HTTP port; 0 takes a free one.",
        8000,
        variable="HATHORA_DEFAULT_PORT",
    )
    region: str | None = _setting(
        value_types.TEXT, "Label in /health, logs and metrics.", variable="HATHORA_REGION"
    )
    model_path: str | None = _setting(
        value_types.PATH,
        "The model to serve. Unset on a machine with no GPU: the embedded model.",
        shown=DEFAULT_MODEL,
    )
    served_model_name: str | None = _setting(
        value_types.TEXT, "The model's name in the API.", shown="the model's own path"
    )
    api_key: str | None = _setting(
        value_types.KEYS,
        "Key that every request must carry, or several with commas between.",
        secret=True,
    )
    log_level: str = _setting(
        value_types.one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        "Our log level and the engines'.",
        "INFO",
    )
    device: str = _setting(
        value_types.one_of("auto", "cuda", "cpu"),
        "auto takes the GPUs where there are any.",
        "auto",
    )
    context_length: int | None = _setting(
        value_types.whole(1), "Longest prompt and answer, in tokens.", shown="the model's own"
    )
    mem_fraction_static: float | None = _setting(
        value_types.FRACTION, "Share of a GPU's memory for weights and KV.", shown="SGLang's own"
    )
    tool_call_parser: str | None = _setting(
        value_types.TEXT, "SGLang's parser of tool calls.", shown="the model's, where it is known"
    )
    reasoning_parser: str | None = _setting(value_types.TEXT, "SGLang's parser of reasoning.")

    pd_mode: str = _setting(
        value_types.one_of("auto", "on", "off"),
        "auto: PD when all visible GPUs are H100 and there are 2, 4 or 8 of them.",
        "auto",
    )
    enable_pd_defaults: bool = _setting(
        value_types.FLAG, "false: auto never chooses PD by itself.", True
    )
    tp_size: int | None = _setting(
        value_types.whole(1),
        "Set: unified engines of that TP; one, unless UNIFIED_REPLICAS says more.",
    )
    unified_replicas: int | None = _setting(
        value_types.whole(1),
        "Set: that many unified engines (of TP_SIZE each) behind this one port, and no PD.",
        shown="one, where there is no PD",
    )
    prefill_replicas: int | None = _setting(
        value_types.whole(1), "Prefill workers, by hand.", shown="the plan's"
    )
    prefill_tp: int | None = _setting(
        value_types.whole(1), "TP of a prefill worker, by hand.", shown="the plan's"
    )
    decode_replicas: int | None = _setting(
        value_types.whole(1), "Decode workers, by hand.", shown="the plan's"
    )
    decode_tp: int | None = _setting(
        value_types.whole(1), "TP of a decode worker, by hand.", shown="the plan's"
    )

    disagg_bootstrap_port: int | None = _setting(
        value_types.whole(1, 65535),
        "Bootstrap port of the first prefill worker, which must be free when it is set here;"
        " the others take the next free ones.",
        shown=f"{DEFAULT_BOOTSTRAP_PORT}, or the next free one",
    )
    disagg_ib_device: str | None = _setting(
        value_types.INTERFACES, "RDMA devices for the KV transfer, e.g. mlx5_0,mlx5_1."
    )
    disagg_transfer_backend: str = _setting(
        value_types.one_of("auto", "mooncake", "nixl"),
        "What carries the KV; auto says why.",
        "auto",
    )

    speculative_algorithm: str | None = _setting(
        value_types.one_of("EAGLE", "EAGLE3"), "Turns speculative decoding on."
    )
    speculative_draft_model_path: str | None = _setting(
        value_types.PATH, "The draft model.", shown="the known draft of a known model"
    )
    speculative_num_steps: int = _setting(
        value_types.whole(1),
        "Depth of the draft's tree.",
        2,
        shown="2; on GPUs 3, if none of the three is set",
    )
    speculative_eagle_topk: int = _setting(
        value_types.whole(1, MAX_EAGLE_TOPK),
        "Branches at each step; PD carries at most 16.",
        6,
        shown="6; on GPUs 1, if none of the three is set",
    )
    speculative_num_draft_tokens: int = _setting(
        value_types.whole(2),
        "Tokens verified at once. At most what the tree holds; steps + 1 for topk 1.",
        10,
        shown="10; on GPUs 4, if none of the three is set",
    )
    speculative_token_map: str | None = _setting(
        value_types.FILE,
        "The draft's small vocabulary: JSON list of token ids, or SGLang's .pt file.",
    )
    speculative_adaptive: bool = _setting(
        value_types.FLAG,
        "SGLang changes the number of steps with acceptance and batch size; needs topk 1, and"
        " SPECULATIVE_NUM_STEPS 1, 3, 5 or 7 to begin with.",
        False,
    )
    speculative_adaptive_config: str | None = _setting(
        value_types.PATH,
        "SGLang's JSON file of candidate steps by batch size.",
        shown="SGLang's own",
    )
    speculative_attention_mode: str = _setting(
        value_types.one_of("prefill", "decode"),
        "Attention kernels that verify the draft.",
        "prefill",
    )

    max_inflight: int | None = _setting(
        value_types.whole(1), "Requests that run at once.", shown="from the plan's KV capacity"
    )
    max_queue: int | None = _setting(
        value_types.whole(0), "Requests that may wait.", shown="from the plan's KV capacity"
    )
    max_inflight_per_client: int | None = _setting(
        value_types.whole(1),
        "Requests that one client (address) may have open, running or waiting; more get 429.",
        shown="no limit",
    )
    prefill_window_tokens: int | None = _setting(
        value_types.whole(0),
        "PD: prompt tokens outstanding in a prefill engine; more wait in the front, where short"
        " prompts go first and waiting counts. 0: no limit. About one or two chunks"
        " (chunked_prefill_size: 8192 on an H100) is what it is for.",
        shown="no limit",
    )
    queue_timeout_s: float = _setting(
        value_types.seconds(zero=False), "How long a request may wait for its turn.", 30.0
    )
    request_timeout_s: float = _setting(
        value_types.seconds(zero=False), "How long a request may take in all.", 600.0
    )
    event_loop: str = _setting(
        value_types.one_of("auto", "uvloop", "asyncio"),
        "Event loop of the front; auto takes uvloop for the server, where it is installed, and"
        " asyncio for PDEngine.",
        "auto",
    )
    headers_timeout_s: float = _setting(
        value_types.seconds(zero=False),
        "How long a client may take to send a request's headers.",
        30.0,
    )
    max_headers_bytes: int = _setting(
        value_types.whole(1024), "Size of a request's headers; more get 431.", 64 * 1024
    )
    max_body_memory_bytes: int = _setting(
        value_types.whole(16 * 2**20),
        "Memory for the bodies that are being read or parsed, of all requests together; more get "
        "503.",
        2**30,
    )
    body_timeout_s: float = _setting(
        value_types.seconds(zero=False),
        "How long a client may take to send a request's body.",
        60.0,
    )
    write_timeout_s: float = _setting(
        value_types.seconds(zero=False),
        "A client that leaves what it was sent unread for this long is disconnected.",
        120.0,
    )
    keep_alive_s: float = _setting(
        value_types.seconds(zero=False), "How long an idle connection stays open.", 120.0
    )
    drain_timeout_s: float = _setting(
        value_types.seconds(zero=True), "How long running requests may go on after SIGTERM.", 30.0
    )
    retry_limit: int = _setting(
        value_types.whole(0), "Further pairs to try when a worker fails a request.", 3
    )
    restart_limit: int = _setting(
        value_types.whole(0), "Restarts of one worker within five minutes before it is given up.", 5
    )
    start_timeout_s: float = _setting(
        value_types.seconds(zero=False),
        "A worker that is not ready after this long is killed: the start fails, or is tried again.",
        1800.0,
    )
    failed_exit_s: float = _setting(
        value_types.seconds(zero=False),
        "The server ends with exit code 5 when no pair has served for this long, and for twice as"
        " long as a start took while one goes on; /health/live is 503 from half of it on.",
        300.0,
    )
    hang_timeout_s: float = _setting(
        value_types.seconds(zero=False),
        "A worker that gives no sign of life for this long is killed and restarted.",
        30.0,
    )
    canary_interval_s: float = _setting(
        value_types.seconds(zero=False),
        "An idle pair carries a token of ours this often, to show that its link works.",
        30.0,
    )
    sse_keep_alive_s: float = _setting(
        value_types.seconds(zero=True),
        "A stream that pauses sends an SSE comment before it has been silent for this long, so that"
        " proxies keep the connection; 0 for clients that cannot read comments.",
        15.0,
    )
    fork_workers: bool = _setting(
        value_types.FLAG,
        "Fork engines from a process that has SGLang imported: they start and restart sooner. Where"
        " that is not safe they are spawned all the same, and /health says why.",
        True,
    )
    resume: bool = _setting(
        value_types.FLAG, "Continue on another pair when a decode worker dies in mid-answer.", True
    )

    cpu_threads: int = _setting(
        value_types.whole(1), "Threads that each engine calculates with; on a CPU alone.", 1
    )
    cpu_untested_models: bool = _setting(
        value_types.FLAG,
        "Start a model on the CPU though it was not held against transformers there: it may answer"
        " otherwise, or die at its first request.",
        False,
    )
    otlp_endpoint: str | None = _setting(
        value_types.URL,
        "OpenTelemetry collector that gets spans, by HTTP, e.g. http://localhost:4318. Other OTEL_"
        " variables are read by OpenTelemetry itself.",
        variable="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    otlp_traces_endpoint: str | None = _setting(
        value_types.URL,
        "The same, as the whole URL for spans.",
        variable="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        shown="OTEL_EXPORTER_OTLP_ENDPOINT/v1/traces",
    )

    engine_args: Mapping[str, Any] = _setting(
        value_types.OBJECT, "Further arguments of sglang.Engine, for every engine.", {}
    )
    prefill_engine_args: Mapping[str, Any] = _setting(
        value_types.OBJECT, "The same, for prefill engines alone.", {}
    )
    decode_engine_args: Mapping[str, Any] = _setting(
        value_types.OBJECT, "The same, for decode engines alone.", {}
    )

    warnings: tuple[str, ...] = ()
    #: The variables of EAGLE's tree that were set, as far as they were.
    tree_by_hand: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from variables; an empty variable is an unset one, but for a secret's:
        who meant to protect the service must not find it open.

        Raises SettingsError with a line for each bad value and each unknown name of ours.
        """
        by_variable = {row.variable: row for row in TABLE}
        given = {
            name: value
            for name, value in environ.items()
            if name in by_variable and (value != "" or by_variable[name].secret)
        }
        unknown = [
            suggestion(name, by_variable)
            for name, value in sorted(environ.items())
            if name not in by_variable and is_mistaken(name, value, by_variable)
        ]
        return cls(**_checked(given, by_variable, unknown))

    @classmethod
    def from_kwargs(cls, **kwargs: object) -> Self:
        """Take the settings from keyword arguments: the variables' names in lower case.

        Values may be typed or text; None is unset. Raises SettingsError as `from_env` does.
        """
        by_name = {row.variable.lower(): row for row in TABLE} | {row.field: row for row in TABLE}
        given = {name: kwargs[name] for name in kwargs if name in by_name}
        unknown = [
            f"{suggestion(name, by_name)}; an argument of sglang.Engine goes into engine_args"
            for name in kwargs
            if name not in by_name
        ]
        return cls(**_checked({n: v for n, v in given.items() if v is not None}, by_name, unknown))

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown |= {row.field: "***" for row in TABLE if row.secret and shown[row.field]}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def traces_url(self) -> str | None:
        """The URL that gets spans; None: tracing is off."""
        if self.otlp_traces_endpoint or not self.otlp_endpoint:
            return self.otlp_traces_endpoint
        return f"{self.otlp_endpoint.rstrip('/')}/v1/traces"

    @property
    def split_by_hand(self) -> tuple[str, ...]:
        """The variables that set the split of the GPUs by hand, as far as they are set."""
        return tuple(field.upper() for field in _SPLIT if getattr(self, field) is not None)


def _rows() -> Iterator[Setting]:
    for field in dataclasses.fields(Settings):
        if not field.metadata:
            continue
        row = field.metadata
        default = {} if field.default is dataclasses.MISSING else field.default
        yield Setting(
            field=field.name,
            variable=row["variable"] or field.name.upper(),
            default=default,
            form=row["form"],
            doc=row["doc"],
            shown_default=row["shown"] or _shown(default),
            secret=row["secret"],
        )


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


TABLE: tuple[Setting, ...] = tuple(_rows())


def _checked(
    given: Mapping[str, object], known: Mapping[str, Setting], problems: list[str]
) -> dict[str, Any]:
    """Return the constructor's arguments, or raise with everything that is wrong."""
    values: dict[str, Any] = {}
    bad: set[str] = set()
    for name, value in given.items():
        row = known[name]
        try:
            values[row.field] = row.form.read(value)
        except (TypeError, ValueError):
            problems.append(row.problem(name, value))
            bad.add(row.field)
    warnings = tuple(_warnings(values))
    tree_by_hand = tuple(f.upper() for f in _TREE if f in values)
    for fields, check in _CHECKS:
        if bad.isdisjoint(fields):
            problems.extend(check(values))
    if problems:
        raise SettingsError("\n".join(problems))
    return values | {"warnings": warnings, "tree_by_hand": tree_by_hand}


def _value(values: Mapping[str, Any], field: str) -> Any:
    return values.get(field, _DEFAULTS[field])


def max_draft_tokens(num_steps: int, topk: int) -> int:
    """Return the size of the largest EAGLE tree, its root included.

    The first step offers `topk` candidates, every later one `topk` for each of `topk` branches;
    the root is the token that is already certain. SGLang 0.5.23, srt/speculative/eagle_utils.py,
    `organize_draft_results`: torch.topk(scores, num_draft_tokens - 1) fails beyond that.
    """
    return 1 + topk + (num_steps - 1) * topk * topk


def _tree(values: dict[str, Any]) -> Iterator[str]:
    steps, topk = (_value(values, f"speculative_{name}") for name in ("num_steps", "eagle_topk"))
    largest = max_draft_tokens(steps, topk)
    field = "speculative_num_draft_tokens"
    if field not in values:
        # With one branch the chain is the tree: SGLang itself forces steps + 1 there.
        values[field] = largest if topk == 1 else min(_DEFAULTS[field], largest)
        return
    tokens, tree = values[field], f"SPECULATIVE_NUM_STEPS={steps}, SPECULATIVE_EAGLE_TOPK={topk}"
    if topk == 1 and tokens != largest:
        yield f"{field.upper()}={tokens!r}: wanted {largest}, steps + 1, with {tree}"
    elif tokens > largest:
        yield f"{field.upper()}={tokens!r}: wanted at most {largest}, the largest tree of {tree}"


# SGLang 0.5.23, srt/speculative/adaptive_spec_params.py, DEFAULT_ADAPTIVE_CONFIG.
_ADAPTIVE_STEPS = (0, 1, 3, 5, 7)


def _adaptive(values: dict[str, Any]) -> Iterator[str]:
    """SGLang only logs that it leaves adaptive speculation off; here that is an error."""
    if not _value(values, "speculative_adaptive"):
        if "speculative_adaptive_config" in values:
            yield (
                f"SPECULATIVE_ADAPTIVE_CONFIG={values['speculative_adaptive_config']!r}: "
                "wanted with SPECULATIVE_ADAPTIVE=true"
            )
        return
    topk, steps = (_value(values, f"speculative_{n}") for n in ("eagle_topk", "num_steps"))
    if topk != 1:
        yield f"SPECULATIVE_EAGLE_TOPK={topk!r}: wanted 1 with SPECULATIVE_ADAPTIVE"
    if "speculative_adaptive_config" not in values and steps not in _ADAPTIVE_STEPS:
        wanted = ", ".join(map(str, _ADAPTIVE_STEPS[1:]))
        yield f"SPECULATIVE_NUM_STEPS={steps!r}: wanted one of {wanted} with SPECULATIVE_ADAPTIVE"


def _one_kind_of_plan(values: dict[str, Any]) -> Iterator[str]:
    tp, mode = values.get("tp_size"), _value(values, "pd_mode")
    by_hand = [f.upper() for f in _SPLIT if f in values]
    replicas = values.get("unified_replicas")
    other = "PD_MODE='on'" if mode == "on" else " and ".join(by_hand)
    if tp is not None and other:
        yield (
            f"TP_SIZE={tp!r}: wanted unset beside {other}: it asks for one unified engine;"
            " the TPs of PD are PREFILL_TP and DECODE_TP"
        )
    if replicas is not None and other:
        yield (
            f"UNIFIED_REPLICAS={replicas!r}: wanted unset beside {other}: it asks for unified"
            " engines, which do both; the replicas of PD are PREFILL_REPLICAS and DECODE_REPLICAS"
        )
    if mode == "off" and by_hand:
        yield f"PD_MODE='off': wanted on or auto beside {' and '.join(by_hand)}"


_TREE = tuple(f"speculative_{name}" for name in ("num_steps", "eagle_topk", "num_draft_tokens"))
_SPLIT = ("prefill_replicas", "prefill_tp", "decode_replicas", "decode_tp")
_DEFAULTS = {row.field: row.default for row in TABLE}
_CHECKS: tuple[tuple[frozenset[str], Callable[[dict[str, Any]], Iterator[str]]], ...] = (
    (
        frozenset(_TREE),
        _tree,
    ),
    (
        frozenset(f"speculative_{n}" for n in ("eagle_topk", "num_steps", "adaptive")),
        _adaptive,
    ),
    (frozenset({"tp_size", "unified_replicas", "pd_mode", *_SPLIT}), _one_kind_of_plan),
)


def _warnings(values: Mapping[str, Any]) -> Iterator[str]:
    if "speculative_algorithm" not in values:
        idle = sorted(field.upper() for field in values if field.startswith("speculative_"))
        if idle:
            yield f"no effect while SPECULATIVE_ALGORITHM is unset: {', '.join(idle)}"
    # SGLang 0.5.23 ignores it there too: srt/speculative/eagle_worker_v2.py, `init_token_map`.
    elif values["speculative_algorithm"] == "EAGLE3" and "speculative_token_map" in values:
        yield "no effect with EAGLE3, whose draft brings its own: SPECULATIVE_TOKEN_MAP"
