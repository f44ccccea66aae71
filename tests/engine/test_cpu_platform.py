"""Real engines on the CPU platform: their tokens are those of transformers, alone or as prefill
and decode over both transfer backends, with EAGLE and without.
"""

from __future__ import annotations

import inspect
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.chi_squared import surprise
from tests.engine_process import EngineHost
from tests.tiny_models import tiny_draft, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

ANSWER = 32
GREEDY = {"temperature": 0, "max_new_tokens": ANSWER, "ignore_eos": True}
# 7 lengths, two with a shared prefix of 49, one repeated: cached, partly cached and new
PROMPTS = [[(7 * i + 3 * j) % 255 + 1 for j in range(5 + 11 * i)] for i in range(6)]
PROMPTS += [[*PROMPTS[4][:49], 9, 8, 7], PROMPTS[0]]
SIX_WORDS = {"temperature": 0, "max_new_tokens": ANSWER, "regex": "(w[0-9]+){6}"}
# steps, branches, nodes
SHAPES = [(1, 1, 2), (2, 1, 3), (2, 6, 10), (3, 4, 16)]
# How many requests of 320 tokens; so 20,480 draws of the first. Not top_k and top_p at once:
# with EAGLE, SGLang 0.5.23 applies one after the other, without it both to the whole.
SAMPLERS: dict[str, tuple[int, Json]] = {
    "temperature": (64, {"temperature": 0.8}),
    "top_k": (32, {"temperature": 1.0, "top_k": 5}),
    "top_p": (32, {"temperature": 1.0, "top_p": 0.7}),
}


@dataclass(frozen=True)
class Models:
    model: str
    draft: str
    algorithm: str = "EAGLE"

    def eagle(self, shape: tuple[int, int, int]) -> Json:
        return {
            "speculative_algorithm": self.algorithm,
            "speculative_draft_model_path": self.draft,
            "speculative_num_steps": shape[0],
            "speculative_eagle_topk": shape[1],
            "speculative_num_draft_tokens": shape[2],
        }


@dataclass(frozen=True)
class Said:
    """What one engine said to everything that is asked here."""

    together: list[Json]
    alone: list[list[int]]
    with_sampled_neighbours: list[list[int]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(tmp_path_factory.mktemp("host") / "host.log") as host:
        yield host


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    model = tiny_model(folder / "model")
    return Models(str(model), str(tiny_draft(folder / "draft", model)))


@pytest.fixture(scope="module")
def transformers(models: Models) -> Any:
    return LlamaForCausalLM.from_pretrained(models.model, dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(host: EngineHost, models: Models) -> Said:
    return ask(host, models, {})


@pytest.fixture(scope="module")
def eagle(host: EngineHost, models: Models) -> Said:
    return ask(host, models, models.eagle((3, 4, 16)))


def ask(host: EngineHost, models: Models, arguments: Json) -> Said:
    with host.engine(model_path=models.model, **arguments) as engine:
        mixed = requests()
        for request in mixed[::2]:
            request["sampling_params"] = GREEDY | {"temperature": 0.8}
        return Said(
            together=engine.generate(requests()),
            alone=[ids(engine.generate([request]))[0] for request in requests()],
            with_sampled_neighbours=ids(engine.generate(mixed))[1::2],
        )


def requests() -> list[Json]:
    asked = [{"input_ids": prompt, "sampling_params": GREEDY} for prompt in PROMPTS]
    return [*asked, {"input_ids": PROMPTS[1], "sampling_params": SIX_WORDS}]


def ids(answers: list[Json]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


def accepted(answers: list[Json]) -> list[float]:
    """Mean tokens per verification of every answer."""
    return [answer["meta_info"]["spec_accept_length"] for answer in answers]


def acceptance(answers: list[Json]) -> float:
    return sum(accepted(answers)) / len(answers)


def greedily(model: Any, prompt: list[int]) -> list[int]:
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(ANSWER):
            tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), dim=1)
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer


def patch_errors() -> list[str]:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    from pd_eagle.cpu.kv_pool import HostKVPool
    from pd_eagle.cpu.patches import all_overrides
    from pd_eagle.overrides import shape_errors

    replaced = [name for name, value in vars(HostKVPool).items() if inspect.isfunction(value)]
    assert len(replaced) == 2
    gone = [name for name in replaced if not hasattr(MHATokenToKVPool, name)]
    return [*shape_errors(all_overrides()), *gone]


def test_everything_that_is_overridden_still_looks_as_it_did(host: EngineHost) -> None:
    assert host.call("tests.engine.test_cpu_platform:patch_errors") == []


def test_greedy_tokens_are_those_of_transformers(plain: Said, transformers: Any) -> None:
    expected = [greedily(transformers, prompt) for prompt in PROMPTS]
    assert ids(plain.together)[: len(PROMPTS)] == expected
    assert plain.alone == ids(plain.together)
    assert max(len(set(answer)) for answer in expected) > 15


def test_an_answer_keeps_to_its_grammar(plain: Said, eagle: Said) -> None:
    assert len(plain.together[-1]["output_ids"]) == 7  # six words and the end
    assert plain.together[-1]["meta_info"]["finish_reason"]["type"] == "stop"
    assert eagle.together[-1]["output_ids"] == plain.together[-1]["output_ids"]


def test_eagle_changes_no_greedy_token(plain: Said, eagle: Said) -> None:
    assert ids(eagle.together) == ids(plain.together)
    assert eagle.alone == plain.alone
    assert eagle.with_sampled_neighbours == ids(plain.together)[1::2]
    assert acceptance(eagle.together) > 1.3


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_eagle_of_any_shape_changes_no_greedy_token(
    host: EngineHost, models: Models, plain: Said, shape: tuple[int, int, int]
) -> None:
    with host.engine(model_path=models.model, **models.eagle(shape)) as engine:
        answers = engine.generate(requests())
        assert ids(answers) == ids(plain.together)
        assert ids(engine.generate(requests()[:1])) == plain.alone[:1]
    assert acceptance(answers) > 1.3


def test_eagle_with_prompts_in_chunks_and_larger_pages(
    host: EngineHost, models: Models, plain: Said
) -> None:
    arguments = models.eagle((3, 1, 4)) | {"page_size": 16, "chunked_prefill_size": 32}
    with host.engine(model_path=models.model, **arguments) as engine:
        assert ids(engine.generate(requests())) == ids(plain.together)


def test_steps_that_adapt_change_no_greedy_token(
    host: EngineHost, models: Models, plain: Said
) -> None:
    """SGLang's `speculative_adaptive`: the number of steps follows acceptance and batch size."""
    arguments = models.eagle((3, 1, 4)) | {"speculative_adaptive": True}
    with host.engine(model_path=models.model, **arguments) as engine:
        for _ in range(3):
            assert ids(engine.generate(requests())) == ids(plain.together)
        alone = [ids(engine.generate([request]))[0] for request in requests()]
    assert alone == plain.alone


def test_eagle3(host: EngineHost, tmp_path: Path) -> None:
    target = tiny_model(tmp_path / "model", layers=7)
    draft = tiny_draft(tmp_path / "draft", target, algorithm="EAGLE3")
    models = Models(str(target), str(draft), "EAGLE3")
    with host.engine(model_path=models.model) as engine:
        expected = ids(engine.generate(requests()))
    with host.engine(model_path=models.model, **models.eagle((2, 6, 10))) as engine:
        answers = engine.generate(requests())
    assert ids(answers) == expected
    assert acceptance(answers) > 1.3


def pretend_to_be_arm() -> None:
    """Take SGLang's branches for Arm, which call operators that no released wheel has."""
    from sglang.srt.distributed import bootstrap
    from sglang.srt.utils import common

    bootstrap._is_cpu_arm64 = True
    common.is_host_cpu_arm64 = lambda: True


def forbid_plugins() -> None:
    os.environ["SGLANG_PLUGINS"] = "somebody_elses"


def test_without_its_overrides_an_engine_does_not_start(host: EngineHost, models: Models) -> None:
    before = f"{__name__}:forbid_plugins"
    with (
        host.engine(before, model_path=models.model) as engine,
        pytest.raises(RuntimeError, match="general plugin pd_eagle_cpu was not executed"),
    ):
        engine.wait_ready()


def test_what_would_die_of_a_gpu_kernel_is_refused(host: EngineHost, models: Models) -> None:
    arguments = models.eagle((3, 1, 4)) | {"speculative_use_rejection_sampling": True}
    with (
        host.engine(model_path=models.model, **arguments) as engine,
        pytest.raises(RuntimeError, match="speculative_use_rejection_sampling needs a GPU"),
    ):
        engine.wait_ready()


@pytest.mark.parametrize("before", ["", f"{__name__}:pretend_to_be_arm"], ids=["here", "as Arm"])
def test_eagle_over_two_ranks(host: EngineHost, models: Models, plain: Said, before: str) -> None:
    arguments = models.eagle((2, 6, 10)) | {"tp_size": 2}
    with host.engine(before, model_path=models.model, **arguments) as engine:
        got = ids(engine.generate(requests()))
    # Two ranks add in another order: answers may part where two tokens are almost equal.
    assert [answer[:8] for answer in got] == [answer[:8] for answer in ids(plain.together)]


@pytest.fixture(scope="module", params=["without EAGLE", "with EAGLE"])
def drawn(
    request: pytest.FixtureRequest, host: EngineHost, models: Models
) -> dict[str, list[list[int]]]:
    """Answers of every sampler, all in one batch, as prompt and answer."""
    arguments = models.eagle((2, 3, 6)) if request.param == "with EAGLE" else {}
    names = [name for name, (count, _) in SAMPLERS.items() for _ in range(count)]
    prompts = [[1 + i, 2, 3] for i in range(len(names))]
    length = {"max_new_tokens": 320, "ignore_eos": True}
    asked = [
        {"input_ids": prompt, "sampling_params": SAMPLERS[name][1] | length}
        for name, prompt in zip(names, prompts, strict=True)
    ]
    with host.engine(
        model_path=models.model,
        max_total_tokens=60_000,
        max_running_requests=128,
        random_seed=11,
        **arguments,
    ) as engine:
        answers = ids(engine.generate(asked))
    rows = list(zip(names, prompts, answers, strict=True))
    return {
        name: [[*prompt, *answer] for mine, prompt, answer in rows if mine == name]
        for name in SAMPLERS
    }


def off_by(model: Any, rows: list[list[int]], sampler: Json) -> float:
    """How surprising the ranks of the drawn tokens are.

    Every token is compared with the distribution that transformers gives after the tokens before
    it, so a bias to what a draft proposes shows at any place of any tree.
    """
    tokens = torch.tensor(rows)
    with torch.no_grad():
        probs = (model(tokens).logits[:, 2:-1].double() / sampler["temperature"]).softmax(-1)
    probs, order = probs.flatten(0, 1).sort(descending=True, stable=True)
    probs[:, sampler.get("top_k", probs.shape[1]) :] = 0
    probs /= probs.sum(1, keepdim=True)
    probs[probs.cumsum(1) - probs > sampler.get("top_p", 1.0)] = 0
    probs /= probs.sum(1, keepdim=True)
    ranks = (order == tokens[:, 3:].reshape(-1, 1)).int().argmax(1)
    return surprise(ranks.bincount(minlength=probs.shape[1]), probs.sum(0))


def test_tokens_are_drawn_from_the_models_distribution(
    drawn: dict[str, list[list[int]]], transformers: Any
) -> None:
    for name, (count, sampler) in SAMPLERS.items():
        assert [len(row) for row in drawn[name]] == [323] * count
        assert off_by(transformers, drawn[name], sampler) < 5, name
        # The measure sees a temperature that is a little off.
        warmer = sampler | {"temperature": sampler["temperature"] + 0.15}
        assert off_by(transformers, drawn[name], warmer) > 5, name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def over_a_pair(host: EngineHost, models: Models, backend: str, roles: dict[str, Json]) -> Any:
    """Return decode's answers; `roles` has further arguments of each role."""
    port = free_port()
    shared: Json = {
        "model_path": models.model,
        "disaggregation_transfer_backend": backend,
        "disaggregation_bootstrap_port": port,
    }
    retraction = {"disaggregation_decode_retraction_backup": "cpu_tensor"}
    where = {"bootstrap_host": "127.0.0.1", "bootstrap_port": port}
    rooms = [request | where | {"bootstrap_room": i} for i, request in enumerate(requests(), 100)]
    with (
        host.engine(disaggregation_mode="prefill", **shared, **roles["prefill"]) as prefill,
        host.engine(
            disaggregation_mode="decode", **shared, **retraction, **roles["decode"]
        ) as decode,
    ):
        prefill.wait_ready()
        decode.submit(rooms)
        prefill.generate(rooms)
        return decode.answers()


@pytest.mark.parametrize("backend", ["nixl", "mooncake"])
def test_prefill_and_decode_give_the_unified_tokens(
    host: EngineHost, models: Models, plain: Said, backend: str
) -> None:
    answers = over_a_pair(host, models, backend, {"prefill": {}, "decode": {}})
    assert ids(answers) == ids(plain.together)


@pytest.mark.parametrize("backend", ["nixl", "mooncake"])
def test_prefill_and_decode_with_eagle(
    host: EngineHost, models: Models, plain: Said, eagle: Said, backend: str
) -> None:
    both = models.eagle((3, 4, 16))
    answers = over_a_pair(host, models, backend, {"prefill": both, "decode": both})
    assert ids(answers) == ids(plain.together)
    assert accepted(answers) == pytest.approx(accepted(eagle.together), rel=0.1)


def test_eagle_on_decode_alone(host: EngineHost, models: Models, plain: Said) -> None:
    roles: dict[str, Json] = {"prefill": {}, "decode": models.eagle((3, 4, 16))}
    answers = over_a_pair(host, models, "nixl", roles)
    assert ids(answers) == ids(plain.together)
