"""SGLang's own routes on real engines: its route table is walked, its own clients are served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from starlette.routing import Match, Route

from pd_eagle import demo
from pd_eagle.http.app import make_app

if TYPE_CHECKING:
    from tests.engine.serving import ServerProcess

HERE = Path(__file__).parent
PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_new_tokens": 4}
#: Routes of SGLang's server that answer 404 here, with the reason.
LEFT_OUT = {
    "/v1/realtime": "a WebSocket for audio; the model takes text",
    "/docs/oauth2-redirect": "there is no OAuth2 here",
    "/redoc": "its page loads foreign assets",
    "/api/chat": "Ollama's",
    "/api/generate": "Ollama's",
    "/api/tags": "Ollama's",
    "/api/show": "Ollama's",
}


def output_of(script: str, *arguments: str, cwd: Path) -> Any:
    """Return the last line that a script beside this file prints, which is JSON."""
    command = [sys.executable, str(HERE / script), *arguments]
    offline = os.environ | {
        "HF_HUB_OFFLINE": "1"
    }  # else it is asked for the model, again and again
    run = subprocess.run(command, cwd=cwd, env=offline, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_every_route_of_sglang_is_accounted_for(tmp_path: Path) -> None:
    app = make_app(cast("Any", SimpleNamespace(max_body_memory_bytes=0, operations=None)))

    def served(path: str, method: str) -> bool:
        scope = {"type": "http", "path": path.replace("{", "").replace("}", ""), "method": method}
        routes = (route for route in app.routes if isinstance(route, Route))
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    theirs = output_of("routes_script.py", cwd=tmp_path)
    assert len(theirs) > 80
    assert all(any(path == out for path, _ in theirs) for out in LEFT_OUT)
    missing = [
        (path, method)
        for path, methods in theirs
        for method in methods
        if path not in LEFT_OUT and not served(path, method)
    ]
    assert missing == []


def test_generate(server: ServerProcess) -> None:
    body = {"text": PROMPT, "sampling_params": GREEDY}
    status, whole = server.post("/generate", body)
    assert status == 200
    assert "Paris" in whole["text"]
    assert whole["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    status, many = server.post("/generate", body | {"text": [PROMPT, PROMPT], "rid": "mine"})
    assert [one["text"] for one in many] == [whole["text"]] * 2


def test_the_first_tokens_probabilities_come_over_a_pair(server: ServerProcess) -> None:
    ids = server.post("/tokenize", {"prompt": " Paris Rome"})[1]["tokens"]
    assert server.post("/detokenize", {"tokens": ids})[1]["text"] == " Paris Rome"
    options = {"return_logprob": True, "token_ids_logprob": ids, "logprob_start_len": 0}
    meta = server.post("/generate", {"text": PROMPT, "sampling_params": GREEDY} | options)[1][
        "meta_info"
    ]
    assert len(meta["input_token_logprobs"]) == 5
    assert [len(row) for row in meta["output_token_ids_logprobs"]] == [2] * 4
    body = {"query": PROMPT, "items": [""], "label_token_ids": ids, "apply_softmax": True}
    (scores,) = server.post("/v1/score", body)[1]["scores"]
    assert scores[0] > 0.9
    assert sum(scores) == pytest.approx(1)


def test_operations(server: ServerProcess) -> None:
    assert server.get("/model_info")[1]["is_generation"] is True
    info = server.get("/server_info")[1]
    assert {state["worker"] for state in info["internal_states"]} == {"prefill-0", "decode-0"}
    assert {load["role"] for load in server.get("/v1/loads")[1]["loads"]} == {"prefill", "decode"}
    assert server.get("/health_generate")[0] == 200


def test_sglangs_own_clients(server: ServerProcess, tmp_path: Path) -> None:
    found = output_of("clients_script.py", server.url, str(demo.model_dir()), cwd=tmp_path)
    endpoint = found.pop("runtime_endpoint")
    assert "Paris" in endpoint["whole"]
    assert endpoint["streamed"] == PROMPT + endpoint["whole"]
    assert endpoint["chosen"] == " Paris"
    measured = {"completed": 4, "total_output_tokens": 16}
    assert found == {"sglang": measured, "sglang-oai": measured, "vllm": measured}
