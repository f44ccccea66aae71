"""A script for `sglang.Engine`, which `PDEngine` must run with the class's name changed alone."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

PROMPTS = ["w1 w2 w3", "w4 w5"]
PARAMS = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
LOGPROBS: Json = {
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 2,
    "token_ids_logprob": [3, 5],
}


def run(engine_class: Any, arguments: Json) -> Json:
    """Return what the script saw: texts, values, and what the answers are made of."""
    engine = engine_class(**arguments)
    try:
        return _script(engine)
    finally:
        engine.shutdown()


def _script(engine: Any) -> Json:
    one = engine.generate(PROMPTS[0], PARAMS)
    batch = engine.generate(PROMPTS, PARAMS)
    steps = list(engine.generate(PROMPTS[0], PARAMS, stream=True))
    several = engine.generate(prompt=PROMPTS[0], sampling_params=PARAMS | {"n": 2})
    known = engine.generate(PROMPTS[0], PARAMS, **LOGPROBS)
    by_ids = engine.generate(input_ids=[[5, 6, 7]], sampling_params=[PARAMS], rid=["mine"])
    labels = [[3, 5]] * 2
    scores = engine.score(PROMPTS[0], PROMPTS, labels, apply_softmax=True).scores
    info = engine.get_server_info()
    flushed = engine.flush_cache()
    meta = known["meta_info"]
    return {
        "texts": [a["text"] for a in (one, *batch, steps[-1], *several, known, *by_ids)],
        "ids": [a["output_ids"] for a in (one, *batch, steps[-1], *several, known, *by_ids)],
        "kinds": {
            "one": sorted(one),
            "batch": [sorted(answer) for answer in batch],
            "step": sorted(steps[0]),
            "several": sorted(several[0]),
            "by_ids": by_ids[0]["meta_info"]["id"],
            "flushed": flushed.success,
            "model": sorted(engine.get_model_info()),
            "tokenizer": engine.tokenizer_manager.tokenizer.encode(PROMPTS[0]),
        },
        "meta": {name: kind(value) for name, value in sorted(one["meta_info"].items())},
        "logprobs": {
            name: [kind(meta[name]), rounded(meta[name])]
            for name in sorted(meta)
            if name.endswith("logprobs")
        },
        "scores": rounded(scores),
        "info": sorted(info),
        "states": [sorted(state) for state in info["internal_states"]],
        "errors": [refusal(engine, given) for given in ({"temperature": -1}, {"min_p": 7})],
    }


def refusal(engine: Any, params: Json) -> str:
    try:
        engine.generate(PROMPTS[0], params)
    except ValueError:
        return "ValueError"
    return "taken"


def kind(value: Any) -> Any:
    """Return what `value` is made of: types, and of the members of lists and tuples too."""
    if isinstance(value, dict):
        return {key: kind(member) for key, member in sorted(value.items())}
    if isinstance(value, list | tuple):
        members = {repr(kind(member)) for member in value if member is not None}
        return [type(value).__name__, sorted(members)]
    return type(value).__name__


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return [rounded(member) for member in value] if isinstance(value, list | tuple) else value


def with_sglang(arguments: Json) -> Json:
    """Run it with SGLang's own class; for a process that has SGLang imported."""
    import sglang

    return run(sglang.Engine, arguments)


def with_pd_eagle(arguments: Json) -> Json:
    """Run it with `PDEngine`, in a process where nothing stands in for a part of it."""
    from pd_eagle import PDEngine

    return run(PDEngine, arguments)
