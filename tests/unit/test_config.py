"""Settings: what is read, what is refused and in which words."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_eagle.errors import SettingsError
from pd_eagle.plan.config import Settings
from pd_eagle.plan.engine_settings import DEFAULT_MODEL
from pd_eagle.plan.setting_checks import max_draft_tokens
from pd_eagle.plan.setting_groups import GROUPS, TABLE

if TYPE_CHECKING:
    from pd_eagle.plan.setting import Setting

DEFAULTS: dict[str, Any] = {
    "PD_HOST": "127.0.0.1",
    "HATHORA_DEFAULT_PORT": 8000,
    "HATHORA_REGION": None,
    "MODEL_PATH": None,
    "SERVED_MODEL_NAME": None,
    "PD_API_KEY": None,
    "PD_ADMIN_API_KEY": None,
    "LOG_LEVEL": "INFO",
    "PD_DEVICE": "auto",
    "CONTEXT_LENGTH": None,
    "MEM_FRACTION_STATIC": None,
    "TOOL_CALL_PARSER": None,
    "REASONING_PARSER": None,
    "PD_MODE": "auto",
    "ENABLE_PD_DEFAULTS": True,
    "TP_SIZE": None,
    "UNIFIED_REPLICAS": None,
    "PREFILL_REPLICAS": None,
    "PREFILL_TP": None,
    "DECODE_REPLICAS": None,
    "DECODE_TP": None,
    "DISAGG_BOOTSTRAP_PORT": None,  # the next free one from 8998
    "DISAGG_IB_DEVICE": None,
    "DISAGG_TRANSFER_BACKEND": "auto",
    "SPECULATIVE_ALGORITHM": None,
    "SPECULATIVE_DRAFT_MODEL_PATH": None,
    "SPECULATIVE_NUM_STEPS": 2,
    "SPECULATIVE_EAGLE_TOPK": 6,
    "SPECULATIVE_NUM_DRAFT_TOKENS": 10,
    "SPECULATIVE_TOKEN_MAP": None,
    "SPECULATIVE_ADAPTIVE": False,
    "SPECULATIVE_ADAPTIVE_CONFIG": None,
    "SPECULATIVE_ATTENTION_MODE": "prefill",
    "PD_MAX_INFLIGHT": None,
    "PD_MAX_QUEUE": None,
    "PD_MAX_INFLIGHT_PER_CLIENT": None,
    "PREFILL_WINDOW_TOKENS": None,
    "QUEUE_TIMEOUT_S": 30.0,
    "REQUEST_TIMEOUT_S": 600.0,
    "DRAIN_TIMEOUT_S": 30.0,
    "PD_EVENT_LOOP": "auto",
    "HEADERS_TIMEOUT_S": 30.0,
    "MAX_HEADERS_BYTES": 64 * 1024,
    "MAX_BODY_MEMORY_BYTES": 2**30,
    "BODY_TIMEOUT_S": 60.0,
    "WRITE_TIMEOUT_S": 120.0,
    "KEEP_ALIVE_S": 120.0,
    "PD_RETRY_LIMIT": 3,
    "PD_RESTART_LIMIT": 5,
    "START_TIMEOUT_S": 1800.0,
    "FAILED_EXIT_S": 300.0,
    "HANG_TIMEOUT_S": 30.0,
    "CANARY_INTERVAL_S": 30.0,
    "SSE_KEEP_ALIVE_S": 15.0,
    "FORK_WORKERS": True,
    "STRICT_FIELDS": False,
    "CORS_ORIGINS": None,
    "SYSTEM_PREAMBLES": "x-anthropic-billing-header:",
    "RESPONSE_STORE_BYTES": 64 * 2**20,
    "PD_RESUME": True,
    "CPU_THREADS": 1,
    "CPU_UNTESTED_MODELS": False,
    "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": None,
    "ENGINE_ARGS": {},
    "PREFILL_ENGINE_ARGS": {},
    "DECODE_ENGINE_ARGS": {},
}

# Variable, text in the environment, what it becomes.
READ: list[tuple[str, str, Any]] = [
    ("PD_HOST", "0.0.0.0", "0.0.0.0"),
    ("HATHORA_DEFAULT_PORT", "0", 0),
    ("HATHORA_DEFAULT_PORT", " 65535 ", 65535),
    ("HATHORA_REGION", "seattle", "seattle"),
    ("PD_API_KEY", "from-a-file\n", "from-a-file"),
    ("PD_API_KEY", "one, zwei-\u00fc ,three", "one,zwei-\u00fc,three"),
    ("MODEL_PATH", " /models/m ", "/models/m"),
    ("LOG_LEVEL", "debug", "DEBUG"),
    ("PD_DEVICE", "CPU", "cpu"),
    ("PD_MODE", "On", "on"),
    ("ENABLE_PD_DEFAULTS", "FALSE", False),
    ("ENABLE_PD_DEFAULTS", "0", False),
    ("ENABLE_PD_DEFAULTS", "yes", True),
    ("TP_SIZE", "4", 4),
    ("MEM_FRACTION_STATIC", "0.8", 0.8),
    ("DISAGG_IB_DEVICE", "mlx5_0,mlx5_1", "mlx5_0,mlx5_1"),
    ("DISAGG_IB_DEVICE", '{"0": "mlx5_0"}', '{"0": "mlx5_0"}'),
    ("DISAGG_IB_DEVICE", "/etc/ib.json", "/etc/ib.json"),
    ("DISAGG_TRANSFER_BACKEND", "NIXL", "nixl"),
    ("SPECULATIVE_ALGORITHM", "eagle3", "EAGLE3"),
    ("SPECULATIVE_EAGLE_TOPK", "16", 16),
    ("PD_MAX_QUEUE", "0", 0),
    ("DRAIN_TIMEOUT_S", "0", 0.0),
    ("QUEUE_TIMEOUT_S", "2.5", 2.5),
    ("SSE_KEEP_ALIVE_S", "0", 0.0),
    ("FORK_WORKERS", "off", False),
    ("STRICT_FIELDS", "true", True),
    ("CORS_ORIGINS", "https://a.example/ , http://b:3000", "https://a.example,http://b:3000"),
    ("CORS_ORIGINS", "*", "*"),
    ("SYSTEM_PREAMBLES", "off", "off"),
    ("RESPONSE_STORE_BYTES", "0", 0),
    ("PD_RESUME", "off", False),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318", "http://collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://collector:4318"),
    ("ENGINE_ARGS", '{"dtype": "float32"}', {"dtype": "float32"}),
]

# What is set by either name of each setting that has an alias.
SET = [
    *(row for row in READ if row[0] in ("PD_DEVICE", "PD_MAX_QUEUE", "PD_RESUME")),
    ("PD_API_KEY", "one,two", "one,two"),
    ("PD_ADMIN_API_KEY", "three", "three"),
    ("PD_EVENT_LOOP", "asyncio", "asyncio"),
    *((f"PD_{name}", "7", 7) for name in ("MAX_INFLIGHT", "MAX_INFLIGHT_PER_CLIENT")),
    *((f"PD_{name}", "7", 7) for name in ("RETRY_LIMIT", "RESTART_LIMIT")),
]

WHOLE_1 = "a whole number ≥ 1"
URL = "an http:// or https:// URL, or host:port"
OBJECT = "a JSON object"
TEXT = "some text"
PATH = "a path or a Hugging Face name"
SPAN = "a number of seconds > 0"
INTERFACES = (
    "names with commas (mlx5_0,mlx5_1), a JSON object from GPU to names, or a .json file of one"
)

KEYS = "one key or several with commas between, none empty or with a blank in it"

# Variable, bad text, wanted form. One row at least for every variable.
BAD: list[tuple[str, str, str]] = [
    ("PD_HOST", " ", TEXT),
    ("HATHORA_DEFAULT_PORT", "http", "a whole number from 0 to 65535"),
    ("HATHORA_DEFAULT_PORT", "65536", "a whole number from 0 to 65535"),
    ("HATHORA_DEFAULT_PORT", "-1", "a whole number from 0 to 65535"),
    ("HATHORA_REGION", "a\nb", TEXT),
    ("MODEL_PATH", " ", PATH),
    ("SERVED_MODEL_NAME", "\t", TEXT),
    ("PD_API_KEY", " ", KEYS),
    ("PD_ADMIN_API_KEY", " ", KEYS),
    ("PD_API_KEY", "", KEYS),
    ("PD_API_KEY", ",", KEYS),
    ("PD_API_KEY", "one,,two", KEYS),
    ("PD_API_KEY", "one, ", KEYS),
    ("PD_API_KEY", "one two", KEYS),
    ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ("PD_DEVICE", "gpu", "one of auto, cuda, cpu"),
    ("CONTEXT_LENGTH", "0", WHOLE_1),
    ("CONTEXT_LENGTH", "32k", WHOLE_1),
    ("MEM_FRACTION_STATIC", "1", "a number between 0 and 1, neither of them"),
    ("MEM_FRACTION_STATIC", "85%", "a number between 0 and 1, neither of them"),
    ("TOOL_CALL_PARSER", " ", TEXT),
    ("REASONING_PARSER", " ", TEXT),
    ("PD_MODE", "true", "one of auto, on, off"),
    ("ENABLE_PD_DEFAULTS", "maybe", "true or false"),
    ("UNIFIED_REPLICAS", "0", WHOLE_1),
    ("PREFILL_WINDOW_TOKENS", "-1", "a whole number ≥ 0"),
    ("TP_SIZE", "two", WHOLE_1),
    ("TP_SIZE", "0", WHOLE_1),
    ("TP_SIZE", "1.0", WHOLE_1),
    ("PREFILL_REPLICAS", "0", WHOLE_1),
    ("PREFILL_TP", "-2", WHOLE_1),
    ("DECODE_REPLICAS", "x", WHOLE_1),
    ("DECODE_TP", "0", WHOLE_1),
    ("DISAGG_BOOTSTRAP_PORT", "0", "a whole number from 1 to 65535"),
    ("DISAGG_IB_DEVICE", "mlx5_0, ,mlx5_1", INTERFACES),
    ("DISAGG_IB_DEVICE", "{not json", INTERFACES),
    ("DISAGG_TRANSFER_BACKEND", "rdma", "one of auto, mooncake, nixl"),
    ("SPECULATIVE_ALGORITHM", "MEDUSA", "one of EAGLE, EAGLE3"),
    ("SPECULATIVE_DRAFT_MODEL_PATH", " ", PATH),
    ("SPECULATIVE_NUM_STEPS", "0", WHOLE_1),
    ("SPECULATIVE_EAGLE_TOPK", "17", "a whole number from 1 to 16"),
    ("SPECULATIVE_EAGLE_TOPK", "0", "a whole number from 1 to 16"),
    ("SPECULATIVE_NUM_DRAFT_TOKENS", "1", "a whole number ≥ 2"),
    ("SPECULATIVE_TOKEN_MAP", " ", "the path of a file"),
    ("SPECULATIVE_ATTENTION_MODE", "both", "one of prefill, decode"),
    ("PD_MAX_INFLIGHT", "0", WHOLE_1),
    ("PD_MAX_QUEUE", "-1", "a whole number ≥ 0"),
    ("PD_MAX_INFLIGHT_PER_CLIENT", "0", WHOLE_1),
    ("QUEUE_TIMEOUT_S", "0", SPAN),
    ("REQUEST_TIMEOUT_S", "inf", SPAN),
    ("REQUEST_TIMEOUT_S", "10m", SPAN),
    ("PD_EVENT_LOOP", "trio", "one of auto, uvloop, asyncio"),
    ("HEADERS_TIMEOUT_S", "0", "a number of seconds > 0"),
    ("MAX_BODY_MEMORY_BYTES", "1", "a whole number ≥ 16777216"),
    ("MAX_HEADERS_BYTES", "0", "a whole number ≥ 1024"),
    ("BODY_TIMEOUT_S", "0", "a number of seconds > 0"),
    ("WRITE_TIMEOUT_S", "0", "a number of seconds > 0"),
    ("KEEP_ALIVE_S", "0", "a number of seconds > 0"),
    ("DRAIN_TIMEOUT_S", "-1", "a number of seconds ≥ 0"),
    ("DRAIN_TIMEOUT_S", "nan", "a number of seconds ≥ 0"),
    ("SPECULATIVE_ADAPTIVE", "maybe", "true or false"),
    ("SPECULATIVE_ADAPTIVE_CONFIG", " ", PATH),
    ("PD_RETRY_LIMIT", "-1", "a whole number ≥ 0"),
    ("PD_RESTART_LIMIT", "many", "a whole number ≥ 0"),
    ("START_TIMEOUT_S", "0", SPAN),
    ("FAILED_EXIT_S", "-1", SPAN),
    ("HANG_TIMEOUT_S", "0", SPAN),
    ("CANARY_INTERVAL_S", "never", SPAN),
    ("SSE_KEEP_ALIVE_S", "-1", "a number of seconds ≥ 0"),
    ("STRICT_FIELDS", "perhaps", "true or false"),
    ("CORS_ORIGINS", "a.example", "origins such as https://host:port with commas between, or *"),
    ("SYSTEM_PREAMBLES", " ", TEXT),
    ("RESPONSE_STORE_BYTES", "-1", "a whole number ≥ 0"),
    ("FORK_WORKERS", "2", "true or false"),
    ("PD_RESUME", "2", "true or false"),
    ("CPU_THREADS", "0", WHOLE_1),
    ("CPU_UNTESTED_MODELS", "maybe", "true or false"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4318", URL),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", URL),
    ("ENGINE_ARGS", "dtype=float32", OBJECT),
    ("ENGINE_ARGS", "[1]", OBJECT),
    ("PREFILL_ENGINE_ARGS", "null", OBJECT),
    ("DECODE_ENGINE_ARGS", '"text"', OBJECT),
]


def field(variable: str) -> str:
    return next(row.field for row in TABLE if row.variable == variable)


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.message


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x",
            },
            "http://t/x",
        ),
    ],
)
def test_where_spans_go(given: dict[str, str], url: str | None) -> None:
    assert Settings.from_env(given).traces_url == url


def test_every_setting_has_its_documented_default() -> None:
    settings = Settings.from_env({})
    assert {row.variable: getattr(settings, row.field) for row in TABLE} == DEFAULTS
    assert settings.warnings == ()
    assert DEFAULT_MODEL == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(("variable", "text", "value"), READ)
def test_a_value_is_read(variable: str, text: str, value: object) -> None:
    assert getattr(Settings.from_env({variable: text}), field(variable)) == value


def test_every_variable_has_a_bad_value_here() -> None:
    assert {variable for variable, _, _ in BAD} == {row.variable for row in TABLE}


@pytest.mark.parametrize(("variable", "text", "wanted"), BAD)
def test_a_bad_value_is_named_with_what_was_wanted(variable: str, text: str, wanted: str) -> None:
    shown = "'***'" if variable in ("PD_API_KEY", "PD_ADMIN_API_KEY") else repr(text)
    assert refusal({variable: text}) == f"{variable}={shown}: wanted {wanted}"


@pytest.mark.parametrize(("variable", "text", "wanted"), BAD)
def test_a_bad_keyword_is_named_as_it_was_given(variable: str, text: str, wanted: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable.lower()}=") as caught:
        Settings.from_kwargs(**{variable.lower(): text})
    assert caught.value.message.endswith(f": wanted {wanted}")


ALIASED = [row for row in TABLE if row.alias]


def test_names_that_any_program_may_use_have_a_prefix() -> None:
    assert {row.alias for row in ALIASED} == {
        *("ADMIN_API_KEY", "API_KEY", "DEVICE", "EVENT_LOOP", "MAX_INFLIGHT"),
        *("MAX_INFLIGHT_PER_CLIENT", "MAX_QUEUE", "RESTART_LIMIT", "RESUME", "RETRY_LIMIT"),
    }
    assert all(row.variable == f"PD_{row.alias}" for row in ALIASED)


@pytest.mark.parametrize("row", ALIASED, ids=lambda row: row.field)
def test_an_alias_is_read_without_a_word(row: Setting) -> None:
    (text,) = {text for name, text, _ in SET if name == row.variable}
    by_alias = Settings.from_env({row.names[1]: text})
    assert by_alias == Settings.from_env({row.variable: text})
    assert by_alias == Settings.from_env({row.variable: text, row.names[1]: text})
    assert by_alias == Settings.from_kwargs(**{row.field: text})
    assert by_alias == Settings.from_kwargs(**{row.variable.lower(): text})
    assert by_alias != Settings.from_env({})
    assert by_alias.warnings == ()


@pytest.mark.parametrize("row", ALIASED, ids=lambda row: row.field)
def test_a_bad_value_of_an_alias_is_told_by_its_name(row: Setting) -> None:
    bad = next(text for name, text, _ in BAD if name == row.variable)
    assert refusal({row.names[1]: bad}) == row.problem(row.names[1], bad)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"PD_DEVICE": "cuda", "DEVICE": "cpu"}, "PD_DEVICE='cuda' and DEVICE='cpu'"),
        ({"PD_MAX_QUEUE": "0", "MAX_QUEUE": "1"}, "PD_MAX_QUEUE='0' and MAX_QUEUE='1'"),
        ({"PD_API_KEY": "one", "API_KEY": "two"}, "PD_API_KEY='***' and API_KEY='***'"),
    ],
)
def test_a_setting_and_its_alias_that_differ(environ: dict[str, str], told: str) -> None:
    assert refusal(environ) == f"{told}: wanted one of the two, or the same value in both"


def test_a_setting_and_its_alias_are_compared_by_value() -> None:
    same = Settings.from_env({"PD_RESUME": "off", "RESUME": "FALSE"})
    assert same == Settings.from_kwargs(resume=False)
    assert Settings.from_env({"PD_DEVICE": "", "DEVICE": "cpu"}).device == "cpu"


def test_an_empty_key_is_an_error_beside_its_alias() -> None:
    assert refusal({"PD_API_KEY": "one", "API_KEY": ""}) == f"API_KEY='***': wanted {KEYS}"


def test_a_keyword_and_its_variables_name_that_differ() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_kwargs(host="127.0.0.1", pd_host="0.0.0.0")
    assert caught.value.message.startswith("host='127.0.0.1' and pd_host='0.0.0.0': wanted one of")


def test_every_setting_stands_in_a_group() -> None:
    assert len(TABLE) == len({row.field for row in TABLE}) == len(DEFAULTS)
    assert list(dict.fromkeys(row.group for row in TABLE)) == list(GROUPS)
    assert len({name for row in TABLE for name in row.names}) == len(TABLE) + len(ALIASED)


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = refusal(
        {
            "TP_SIZE": "two",
            "PD_MODE": "maybe",
            "SPECULATIVE_STEPS": "3",
            "SPECULATIVE_EAGLE_TOPK": "1",
            "SPECULATIVE_NUM_DRAFT_TOKENS": "10",
        }
    )
    assert message.splitlines() == [
        "SPECULATIVE_STEPS: did you mean SPECULATIVE_NUM_STEPS?",
        "TP_SIZE='two': wanted a whole number ≥ 1",
        "PD_MODE='maybe': wanted one of auto, on, off",
        "SPECULATIVE_NUM_DRAFT_TOKENS=10: wanted 3, steps + 1, with SPECULATIVE_NUM_STEPS=2,"
        " SPECULATIVE_EAGLE_TOPK=1",
    ]


def test_a_bad_value_is_not_checked_against_others() -> None:
    message = refusal({"SPECULATIVE_EAGLE_TOPK": "x", "SPECULATIVE_NUM_DRAFT_TOKENS": "44"})
    assert message.splitlines() == [
        "SPECULATIVE_EAGLE_TOPK='x': wanted a whole number from 1 to 16"
    ]


def test_an_empty_variable_is_unset() -> None:
    assert Settings.from_env(
        {row.variable: "" for row in TABLE if not row.secret}
    ) == Settings.from_env({})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("PD_MOD", "did you mean PD_MODE?"),
        ("ENABLE_PD_DEFAULT", "did you mean ENABLE_PD_DEFAULTS?"),
        ("DISAGG_BOOTSTRAP_PORTS", "did you mean DISAGG_BOOTSTRAP_PORT?"),
        ("DISAGG_DECODE_TP", "did you mean DECODE_TP?"),
        ("DISAGGREGATION_MODE", "no setting is called that"),
        ("SPECULATIVE_TOPK", "did you mean SPECULATIVE_EAGLE_TOPK?"),
        ("PREFILL_REPLICA", "did you mean PREFILL_REPLICAS?"),
        ("DECODE_TPS", "did you mean DECODE_TP?"),
        ("HATHORA_REGIONS", "did you mean HATHORA_REGION?"),
        ("HATHORA_DEFAULT_PROT", "did you mean HATHORA_DEFAULT_PORT?"),
    ],
)
def test_an_unknown_name_of_ours_is_an_error(name: str, told: str) -> None:
    assert refusal({name: "1"}) == f"{name}: {told}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HATHORA_PROCESS_ID", "p"),
        ("HATHORA_HOSTNAME", "h"),
        ("HATHORA_APP_ID", "a"),
        ("HATHORA_APP_SECRET", "s"),
        ("HATHORA_DEPLOYMENT_ID", "d"),
        ("HATHORA_BUILD_TAG", "t"),
        ("HATHORA_ROOMS_PER_PROCESS", "1"),
        ("HATHORA_TOKEN", "t"),
        ("DECODE_SERVICE_HOST", "10.0.0.1"),
        ("DECODE_SERVICE_PORT_HTTP", "80"),
        ("DECODE_PORT", "tcp://10.0.0.1:80"),
        ("PREFILL_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("PD_EAGLE_ANYTHING", "1"),
        ("PATH", "/bin"),
        ("MODEL_PATHS", "x"),
    ],
)
def test_a_name_that_others_set_is_left_alone(name: str, value: str) -> None:
    assert Settings.from_env({name: value}) == Settings.from_env({})


def test_a_bare_port_variable_is_a_service_link_only_with_its_address() -> None:
    assert refusal({"DECODE_PORT": "80"}).startswith("DECODE_PORT: did you mean ")


@pytest.mark.parametrize(
    ("steps", "topk", "largest"),
    [(1, 1, 2), (2, 1, 3), (5, 1, 6), (1, 4, 5), (2, 6, 43), (3, 4, 37), (2, 16, 273)],
)
def test_the_largest_tree(steps: int, topk: int, largest: int) -> None:
    # As SGLang grows it: the first step scores topk candidates, every later one topk for each of
    # the topk branches that it kept; the root is not scored.
    scored = topk + sum(topk * topk for _ in range(1, steps))
    assert max_draft_tokens(steps, topk) == largest == 1 + scored


@pytest.mark.parametrize(
    ("steps", "topk", "tokens"),
    [(2, 6, 10), (1, 1, 2), (5, 1, 6), (1, 4, 5), (1, 16, 10), (3, 2, 10), (2, 2, 7)],
)
def test_unset_draft_tokens_follow_the_tree(steps: int, topk: int, tokens: int) -> None:
    settings = Settings.from_kwargs(speculative_num_steps=steps, speculative_eagle_topk=topk)
    assert settings.speculative_num_draft_tokens == tokens


ADAPTIVE: list[tuple[dict[str, str], str]] = [
    ({"SPECULATIVE_NUM_STEPS": "3"}, "SPECULATIVE_EAGLE_TOPK=6: wanted 1 with"),
    ({"SPECULATIVE_EAGLE_TOPK": "1"}, "SPECULATIVE_NUM_STEPS=2: wanted one of 1, 3, 5, 7 with"),
]


@pytest.mark.parametrize(("environ", "told"), ADAPTIVE)
def test_adaptive_speculation_needs_what_sglang_needs(environ: dict[str, str], told: str) -> None:
    assert refusal(environ | {"SPECULATIVE_ADAPTIVE": "true"}) == f"{told} SPECULATIVE_ADAPTIVE"


def test_an_adaptive_config_alone_has_no_effect() -> None:
    message = refusal({"SPECULATIVE_ADAPTIVE_CONFIG": "steps.json"})
    assert message == (
        "SPECULATIVE_ADAPTIVE_CONFIG='steps.json': wanted with SPECULATIVE_ADAPTIVE=true"
    )
    settings = Settings.from_kwargs(
        speculative_adaptive=True,
        speculative_adaptive_config="steps.json",
        speculative_eagle_topk=1,
        speculative_num_steps=2,  # the user's own candidates may hold it
    )
    assert settings.speculative_num_draft_tokens == 3


@pytest.mark.parametrize(
    ("steps", "topk", "tokens", "wanted"),
    [
        (2, 1, 4, "wanted 3, steps + 1, with"),
        (5, 1, 5, "wanted 6, steps + 1, with"),
        (1, 4, 6, "wanted at most 5, the largest tree of"),
        (2, 6, 44, "wanted at most 43, the largest tree of"),
    ],
)
def test_draft_tokens_that_no_tree_holds(steps: int, topk: int, tokens: int, wanted: str) -> None:
    message = refusal(
        {
            "SPECULATIVE_NUM_STEPS": str(steps),
            "SPECULATIVE_EAGLE_TOPK": str(topk),
            "SPECULATIVE_NUM_DRAFT_TOKENS": str(tokens),
        }
    )
    assert message == (
        f"SPECULATIVE_NUM_DRAFT_TOKENS={tokens}: {wanted} SPECULATIVE_NUM_STEPS={steps},"
        f" SPECULATIVE_EAGLE_TOPK={topk}"
    )


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TP_SIZE": "2", "PD_MODE": "on"}, "TP_SIZE=2: wanted unset beside PD_MODE='on': "),
        (
            {"UNIFIED_REPLICAS": "2", "PD_MODE": "on"},
            "UNIFIED_REPLICAS=2: wanted unset beside PD_MODE='on': it asks for unified engines",
        ),
        (
            {"UNIFIED_REPLICAS": "2", "DECODE_REPLICAS": "1"},
            "UNIFIED_REPLICAS=2: wanted unset beside DECODE_REPLICAS: ",
        ),
        (
            {"TP_SIZE": "2", "PREFILL_TP": "1", "DECODE_TP": "1"},
            "TP_SIZE=2: wanted unset beside PREFILL_TP and DECODE_TP: ",
        ),
        (
            {"PD_MODE": "off", "DECODE_REPLICAS": "2"},
            "PD_MODE='off': wanted on or auto beside DECODE_REPLICAS",
        ),
    ],
)
def test_settings_that_contradict_each_other(environ: dict[str, str], told: str) -> None:
    assert refusal(environ).startswith(told)


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({}, None),
        ({"speculative_algorithm": "EAGLE", "speculative_num_steps": 3}, None),
        (
            {"speculative_num_steps": 3, "speculative_eagle_topk": 1},
            "no effect while SPECULATIVE_ALGORITHM is unset: SPECULATIVE_EAGLE_TOPK,"
            " SPECULATIVE_NUM_STEPS",
        ),
        (
            {"speculative_algorithm": "EAGLE3", "speculative_token_map": "ids.json"},
            "no effect with EAGLE3, whose draft brings its own: SPECULATIVE_TOKEN_MAP",
        ),
    ],
)
def test_what_has_no_effect_is_a_warning(given: dict[str, Any], warning: str | None) -> None:
    assert Settings.from_kwargs(**given).warnings == (() if warning is None else (warning,))


def test_keywords_are_typed_or_text_and_none_is_unset() -> None:
    typed = Settings.from_kwargs(port=8080, resume=False, engine_args={"dtype": "float32"})
    text = Settings.from_kwargs(hathora_default_port="8080", resume="no", tp_size=None)
    assert (typed.port, typed.resume) == (text.port, text.resume) == (8080, False)
    assert typed.engine_args == {"dtype": "float32"}
    assert text.tp_size is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("tp_size", True), ("tp_size", 2.0), ("resume", 1), ("model_path", 7), ("port", [1])],
)
def test_a_keyword_of_the_wrong_type(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"^{name}="):
        Settings.from_kwargs(**{name: value})


def test_secrets_are_never_shown() -> None:
    settings = Settings.from_env({"PD_API_KEY": "s3cret"})
    assert settings.api_key == "s3cret"
    assert "s3cret" not in repr(settings)
    assert "api_key='***'" in repr(settings)
    assert "api_key=None" in repr(Settings.from_env({}))
    assert "s3cret" not in refusal({"PD_API_KEY": "s3cret\x00"})


def test_settings_cannot_be_changed() -> None:
    settings = Settings.from_env({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


def test_the_split_by_hand_is_named() -> None:
    settings = Settings.from_kwargs(decode_tp=1, prefill_replicas=2)
    assert settings.split_by_hand == ("PREFILL_REPLICAS", "DECODE_TP")


@given(st.dictionaries(st.sampled_from([row.variable for row in TABLE]), st.text()))
def test_any_text_is_read_or_refused(environ: dict[str, str]) -> None:
    with suppress(SettingsError):
        settings = Settings.from_env(environ)
        assert settings.speculative_num_draft_tokens >= 2
        assert settings == Settings.from_env(environ)
