"""A user's own script, outside the checkout, as mypy sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = """\
from pd_eagle import GenerateResult, NotSupported, PDEngine, SamplingParams

greedy: SamplingParams = {"temperature": 0, "max_new_tokens": 8}
with PDEngine(model_path="m", decode_replicas=2, attention_backend="triton") as engine:
    one: GenerateResult = engine.generate("a", greedy)
    many: list[GenerateResult] = engine.generate(["a", "b"], [greedy, {"top_p": 0.5}])
    for step in engine.generate("a", stream=True):
        print(step["text"], step["meta_info"]["finish_reason"], step["output_ids"][0] + 1)
    print(one["text"], many[0]["text"], engine.plan.mode, engine.score("a", ["b"], [1]))
"""
WRONG = {
    "PDEngine(decode_replica=2)": 'Unexpected keyword argument "decode_replica"',
    "PDEngine(decode_replicas='two')": 'incompatible type "str"; expected "int | None"',
    "PDEngine().encode('a')": '"PDEngine" has no attribute "encode"',
    "PDEngine().generate('a')['txt']": 'TypedDict "GenerateResult" has no key "txt"',
    "PDEngine().generate('a', return_logprobs=True)": "return_logprobs",
    "SamplingParams(max_tokens=3)": 'Extra key "max_tokens" for TypedDict "SamplingParams"',
}


@pytest.mark.timeout(600)
def test_mypy_finds_the_package_and_catches_mistakes(tmp_path: Path) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    if list(packages.glob("__editable___pd_eagle_*_finder.py")):
        pytest.skip("the package was installed with an import hook: make install renews it")
    (tmp_path / "right.py").write_text(SCRIPT)
    imports = SCRIPT.splitlines()[0]
    (tmp_path / "wrong.py").write_text("\n".join([imports, *WRONG, ""]))
    hidden = ("PYTHONPATH", "MYPYPATH")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "right.py", "wrong.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in run.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if not line.startswith("wrong.py:")], run.stdout
    for number, (line, message) in enumerate(WRONG.items(), 2):
        told = [error for error in errors if error.startswith(f"wrong.py:{number}: ")]
        assert any(message in error for error in told), (line, run.stdout)
