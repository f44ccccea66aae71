"""SGLang's own clients, unmodified, against a server: `clients_script.py URL TOKENIZER`.

One process for all of them: what they import takes seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sglang
from sglang.benchmark.serving import cli_main
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

PROMPT = "The capital of France is"


@sglang.function  # type: ignore[untyped-decorator,unused-ignore]
def capital(s: Any) -> None:
    s += PROMPT
    s += sglang.gen("answer", max_tokens=4, temperature=0)


@sglang.function  # type: ignore[untyped-decorator,unused-ignore]
def choice(s: Any) -> None:
    s += PROMPT
    s += sglang.select("city", choices=[" Paris", " Rome"])


def runtime_endpoint(url: str) -> dict[str, Any]:
    """Return what a program in SGLang's language gets, whole, streamed and by choice."""
    endpoint = RuntimeEndpoint(url)
    sglang.set_default_backend(endpoint)
    state = capital.run(stream=True)
    streamed = "".join(state.text_iter())
    endpoint.flush_cache()
    return {
        "whole": capital.run()["answer"],
        "streamed": streamed,
        "chosen": choice.run()["city"],
        "name": endpoint.get_model_name(),
        "version": endpoint.get_server_info()["version"],
    }


def bench_serving(url: str, tokenizer: str, backend: str) -> dict[str, Any]:
    """Return what SGLang's load generator measured through one of its backends."""
    result = Path(f"{backend}.jsonl").resolve()
    sys.argv = [
        *("bench_serving", "--backend", backend, "--base-url", url, "--model", "default"),
        *("--tokenizer", tokenizer, "--dataset-name", "random-ids", "--num-prompts", "4"),
        *("--random-input-len", "16", "--random-output-len", "4", "--output-file", str(result)),
        *("--random-range-ratio", "1", "--disable-tqdm"),
        *([] if backend == "vllm" else ["--flush-cache"]),  # vLLM's has a route of its own
    ]
    cli_main()
    measured: dict[str, Any] = json.loads(result.read_text().splitlines()[-1])
    return {name: measured[name] for name in ("completed", "total_output_tokens")}


def main(url: str, tokenizer: str) -> None:
    found: dict[str, Any] = {"runtime_endpoint": runtime_endpoint(url)}
    for backend in ("sglang", "sglang-oai", "vllm"):
        found[backend] = bench_serving(url, tokenizer, backend)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
