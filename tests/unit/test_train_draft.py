"""tools/train_draft: the parts agree with transformers and SGLang, and a toy learns."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2]))  # tools is not part of the installed package

from tools.draft import corpus, evaluation, losses, model, prompts, tasks, training  # noqa: E402
from tools.draft import target as targets  # noqa: E402
from tools.draft.generation import Decoding, generate  # noqa: E402
from tools.draft.losses import Batch, Objective  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.draft.model import Draft
    from tools.draft.target import Target

STOP = 2
OBJECTIVE = Objective(depth=3, decay=0.8, feature=0.1, token=1.0, noise=0.05)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.3,
        rope_theta=1000.0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def target(llama: Any) -> Target:
    return targets.from_transformers(llama, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def talks(target: Target) -> list[corpus.Conversation]:
    starts = [[1, 3 + i % 50, 5 + i % 7] for i in range(24)]
    new = generate(target, starts, [0.0] * len(starts), Decoding(STOP, 20, batch=8), seed=0)
    return [
        corpus.Conversation(
            np.array(a + b, np.int32), np.array([False] * len(a) + [True] * len(b)), "toy"
        )
        for a, b in zip(starts, new, strict=True)
    ]


def make_training(steps: int = 30) -> training.Training:
    return training.Training(steps, 200, 3e-3, 5, 7, OBJECTIVE, logit_rows=50)


def fresh(target: Target) -> Draft:
    return model.fresh(target.shape, 0, 0.3, 1.0)


def test_hidden_states_are_those_of_transformers(llama: Any, target: Target) -> None:
    ids = torch.randint(0, 64, (2, 11))
    ours = target.hidden(ids, torch.arange(11)[None])
    with torch.no_grad():
        theirs = llama.model(ids).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_greedy_answers_are_those_of_transformers(llama: Any, target: Target) -> None:
    rows = [[1, 5, 9], [1, 7], [1, 30, 31, 32, 33], [4]]
    decoding = Decoding(STOP, max_new=40, batch=3)
    ours = generate(target, rows, [0.0] * 4, decoding, seed=0)
    for row, answer in zip(rows, ours, strict=True):
        whole = llama.generate(
            torch.tensor([row]), max_new_tokens=40, do_sample=False, eos_token_id=STOP
        )
        assert answer == whole[0, len(row) :].tolist()


def test_sampled_answers_depend_on_the_seed_alone(target: Target) -> None:
    rows = [[1, 5, 9]] * 6
    decoding = Decoding(STOP, max_new=12, min_p=0.02, batch=4)
    first, again, other = (generate(target, rows, [1.0] * 6, decoding, seed) for seed in (3, 3, 4))
    assert first == again != other


def test_an_unrolled_step_sees_what_decoding_would_see(target: Target) -> None:
    """A guess two steps deep equals the one made for this root alone, with nothing after it."""
    draft, ids = fresh(target), torch.randint(0, 64, (1, 9))
    features = target.hidden(ids, torch.arange(9)[None])
    deep = losses.unroll(draft, target, ids, features, 3)[2]
    root = 4
    short = root + 4
    embeds = target.embed[ids[:, 1:short]]
    first, memory = draft.read(
        embeds[:, : root + 1], features[:, : root + 1], torch.ones(1, root + 1).bool()
    )
    guess = first[:, root:, None]
    for step in (1, 2):
        token = embeds[:, root + step][:, None, None]
        guess, memory = draft.extend(token, guess, torch.tensor([root + step]), memory)
    torch.testing.assert_close(guess[:, 0, 0], deep[:, root])


def test_the_chunked_divergence_has_the_gradient_of_the_plain_one(target: Target) -> None:
    guesses = torch.randn(2, 7, 32, requires_grad=True)
    truths, weights = torch.randn(7, 32), torch.rand(2, 7)
    total, _, _ = losses._Divergence.apply(guesses, truths, weights, target.head, 3)
    total.backward()
    chunked, guesses.grad = guesses.grad, None
    teacher = (truths @ target.head.T).log_softmax(-1)
    own = (guesses @ target.head.T).log_softmax(-1)
    plain = ((teacher.exp() * (teacher - own)).sum(-1) * weights).sum()
    plain.backward()
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(chunked, guesses.grad)


def test_only_what_decoding_meets_is_counted() -> None:
    answer = torch.tensor([[False, False, True, True, True, False]])
    place, valid = losses._aligned(answer, 3)
    assert place.nonzero()[:, 1].tolist() == [1, 2, 3]
    # x[2] comes from the target itself, so the first guess is h[2], for x[3]
    assert [row.nonzero()[:, 1].tolist() for row in valid] == [[2, 3], [3], []]


def test_the_loss_goes_down_and_a_resume_changes_nothing(
    target: Target, talks: list[corpus.Conversation], tmp_path: Path
) -> None:
    plan = make_training()
    whole = training.train(target, talks, plan, tmp_path / "whole.pt")
    training.train(target, talks, plan, tmp_path / "parts.pt", stop_at=11)
    parts = training.train(target, talks, plan, tmp_path / "parts.pt")
    for name, value in whole.draft.state_dict().items():
        torch.testing.assert_close(parts.draft.state_dict()[name], value, atol=0, rtol=0)
    batch = training.collate(talks, list(range(24)), 64, torch.device("cpu"))
    before = losses.loss(fresh(target), target, batch, OBJECTIVE, 0, 50)
    after = losses.loss(whole.draft, target, batch, OBJECTIVE, 0, 50)
    assert after.loss < 0.8 * before.loss
    assert after.agreement[0] > before.agreement[0]


def test_a_checkpoint_of_another_training_is_refused(
    target: Target, talks: list[corpus.Conversation], tmp_path: Path
) -> None:
    training.train(target, talks, make_training(2), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="another training"):
        training.train(target, talks, make_training(3), tmp_path / "c.pt")


def test_a_perfect_guess_is_accepted(
    target: Target, talks: list[corpus.Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guesses replaced by the truth the first draft token is always right."""
    tree = evaluation.Tree(2, 3, 7)
    talk = max(talks, key=lambda t: len(t.ids))
    ids = torch.from_numpy(talk.ids).long()
    features = target.hidden(ids[None], torch.arange(len(ids))[None])
    monkeypatch.setattr(
        model.Draft, "_finish", lambda self, x, mixed: _truth(features, x), raising=True
    )
    roots = torch.arange(2, len(ids) - 3)
    counts = evaluation.accepted(fresh(target), target, ids, features[0], roots, tree)
    assert counts.min() >= 1  # the first guess is h[t+1] itself


def test_a_walk_commits_what_was_accepted_and_one_token_more() -> None:
    """Nine tokens, the first from prefill: three verifications of 2 + 1, the last one cut short."""
    tally = evaluation.Tally(0, 0, Counter())
    evaluation.walk(dict.fromkeys(range(40), 2), 3, 12, tally)
    assert (tally.verifications, tally.tokens) == (3, 8)
    assert tally.accepted == {2: 3}


def _truth(features: Any, x: Any) -> Any:
    return features.roll(-1, dims=1) if x.shape == features.shape else x


def test_a_tree_of_one_path_is_the_chain(target: Target, talks: list[corpus.Conversation]) -> None:
    """Acceptance by the tree code equals a chain of top-1 guesses written out plainly."""
    draft, talk = fresh(target), talks[0]
    ids = torch.from_numpy(talk.ids).long()
    features = target.hidden(ids[None], torch.arange(len(ids))[None])
    roots = torch.arange(0, len(ids) - 4)
    counts = evaluation.accepted(
        draft, target, ids, features[0], roots, evaluation.Tree(2, 1, 3)
    ).tolist()
    guesses = losses.unroll(draft, target, ids[None], features, 2)
    firsts = [target.logits(g[0]).argmax(-1).tolist() for g in guesses]
    for root, count in zip(roots.tolist(), counts, strict=True):
        right = [firsts[j][root] == ids[root + 2 + j] for j in range(2)]
        assert count == (2 if all(right) else int(right[0]))


def test_the_export_has_sglangs_names_and_shapes(target: Target, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    draft = fresh(target)
    model.save(draft, tmp_path, 1, 2)
    weights = load_file(tmp_path / "model.safetensors")
    attn, mlp = "layers.0.self_attn.", "layers.0.mlp."
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "fc.weight": (32, 64),
        "fc.bias": (32,),
        f"{attn}q_proj.weight": (32, 32),
        f"{attn}k_proj.weight": (16, 32),
        f"{attn}v_proj.weight": (16, 32),
        f"{attn}o_proj.weight": (32, 32),
        f"{mlp}gate_proj.weight": (48, 32),
        f"{mlp}up_proj.weight": (48, 32),
        f"{mlp}down_proj.weight": (32, 48),
        "layers.0.post_attention_layernorm.weight": (32,),
    }
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle"]
    assert config["tie_word_embeddings"] is False
    again = model.restore(tmp_path, target.shape)
    assert torch.equal(again.fc.weight, draft.fc.weight.bfloat16().float())


def test_the_shipped_draft_is_whole_and_fits_its_config() -> None:
    folder = Path(__file__).parents[2] / "pd_eagle" / "demo" / "draft"
    config = json.loads((folder / "config.json").read_text())
    shape = targets.Shape(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=1,
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        mlp=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )
    assert config == model.config_json(shape, 1, 2)
    draft = model.restore(folder, shape)  # strict: a missing or unknown name raises
    assert all(bool(p.isfinite().all()) for p in draft.parameters())


def test_conversations_survive_the_disk(talks: list[corpus.Conversation], tmp_path: Path) -> None:
    corpus.save(talks, tmp_path / "t.npz")
    for was, now in zip(talks, corpus.load(tmp_path / "t.npz"), strict=True):
        assert was.ids.tolist() == now.ids.tolist()
        assert was.answer.tolist() == now.answer.tolist()
        assert (was.kind, was.turns) == (now.kind, now.turns)


def test_answers_are_found_in_a_conversation() -> None:
    marks = [False, True, True, False, True]
    talk = corpus.Conversation(np.arange(5, dtype=np.int32), np.array(marks), "toy")
    assert evaluation.spans(talk) == [(1, 3), (4, 5)]


def test_every_template_can_be_filled_and_every_batch_is_within_its_size(
    talks: list[corpus.Conversation],
) -> None:
    texts = [*prompts.templated(2000, 1), *prompts.openings(500, 1)]
    assert len(texts) == 2500
    assert not [text for text in texts if "{topic}" in text or not text.strip()]
    assert texts[:2000] == list(prompts.templated(2000, 1))
    assert corpus.prompt_key("What  is\ntea?") == corpus.prompt_key("what is tea?")
    assert all(len(group) > 10 for group in (tasks.TOPICS, tasks.SYSTEMS, tasks.FOLLOW_UPS))
    groups = list(training.batches(talks, 256, 0))
    assert sorted(i for _, rows in groups for i in rows) == list(range(24))
    assert all(length * len(rows) <= 256 for length, rows in groups)


def test_padding_changes_no_loss(target: Target, talks: list[corpus.Conversation]) -> None:
    quiet = Objective(depth=2, decay=1.0, feature=1.0, token=1.0, noise=0.0)
    short = training.collate(talks, [0, 1], 24, torch.device("cpu"))
    wide = Batch(torch.nn.functional.pad(short.ids, (0, 40)), _padded(short.answer))
    results = [losses.loss(fresh(target), target, b, quiet, 0, 50).loss for b in (short, wide)]
    torch.testing.assert_close(*results)


def _padded(answer: Any) -> Any:
    return torch.nn.functional.pad(answer, (0, 40))
