"""The kit for GPU machines: stages that fail leave their reason, loads come out as they went in."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu import cubins, page, run, unpack
from benchmarks.gpu.host import Host
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.pack import group_of, pack, requirements
from benchmarks.provenance import ROOT, provenance

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(240)
def test_stages_leave_json_and_none_stops_the_next(tmp_path: Path) -> None:
    late = run.run_stage("start", tmp_path, 0.2, ["--dry-run"])
    refused = run.run_stage("kill", tmp_path, 30, ["--no-such-option"])
    assert late["error"] == "over its limit of 0.2 s"
    assert refused["error"] == "exit code 2"
    assert "no-such-option" in refused["log"]
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--dry-run", "--stages", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("stage-1-plan: ")
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        kept = {name for name in archive.getnames() if name.endswith(".json")}
    assert kept == {"stage-1-plan.json", "stage-2-start.json", "stage-4-kill.json"}
    found = json.loads((tmp_path / "stage-1-plan.json").read_text())
    assert found["dry_run"] is True
    assert found["finished"] is True
    assert found["device"] == "cpu"
    assert found["parts"]["plan on"]["mode"] == "pd"
    assert found["parts"]["plan auto"]["right"] is True


def test_a_part_that_fails_costs_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stage.json", {}, gpus=1)

    def fail() -> dict[str, Any]:
        raise KeyError("lost")

    assert journal.part("bad", fail) is None
    assert journal.part("two", dict, gpus=2) is None
    assert journal.part("good", lambda: {"value": 3}) == {"value": 3}
    found = json.loads((tmp_path / "stage.json").read_text())
    assert found["parts"]["bad"]["error"] == "KeyError: 'lost'"
    assert found["parts"]["two"] == {"skipped": "needs 2 GPUs, found 1"}
    assert found["parts"]["good"]["value"] == 3
    assert found["finished"] is False


def test_a_part_that_is_cut_short_keeps_what_it_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stage.json", {}, gpus=1)

    def measure() -> dict[str, Any]:
        journal.so_far("long", {"first": 1})
        kept = json.loads((tmp_path / "stage.json").read_text())
        assert kept["parts"]["long"] == {"first": 1, "error": "cut short"}
        return {"first": 1, "second": 2}

    assert journal.part("long", measure) == {"first": 1, "second": 2}
    assert "error" not in journal.parts["long"]


def test_parts_that_are_not_asked_for_are_not_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stage.json", {}, gpus=2, only="^PD|EAGLE$")
    journal.parts_at_once({"PD": dict, "unified": dict, "unified EAGLE": dict})
    assert sorted(journal.parts) == ["PD", "unified EAGLE"]


def test_a_tree_without_history_says_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARKS_COMMIT", "0123abc")
    assert provenance()["commit"] == "0123abc"


def test_engine_arguments_of_a_part_win_over_the_hosts(tmp_path: Path) -> None:
    exact = Host(2, False, tmp_path).exact
    args = Host(2, False, tmp_path).settings(**exact)["engine_args"]
    assert args["dtype"] == "bfloat16"
    assert args["attention_backend"] == "triton"


def test_stages_are_chosen_by_number_or_name() -> None:
    assert run.chosen("7,plan,2") == ["plan", "start", "transfer"]
    with pytest.raises(argparse.ArgumentTypeError, match="nonsense"):
        run.chosen("nonsense")


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """Three small groups, packed into loads of 3,000 bytes."""
    tree = tmp_path / "tree"
    for name, size in {"torch/lib/libtorch_cuda.so": 5000, "one.py": 700, "triton/a.so": 1}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(random.Random(name).randbytes(size))
    (tree / "one.py").chmod(0o755)
    folder = tmp_path / "packed"
    folder.mkdir()
    pack(tree, folder, [], {"pins": []}, limit=3000)
    return folder


def test_loads_come_out_as_they_went_in(loads: Path, tmp_path: Path) -> None:
    tree, kept = tmp_path / "tree", tmp_path / "kept"
    names = sorted(load.name for load in loads.iterdir())
    assert len(names) >= 3
    for done, name in enumerate(names, 1):
        assert unpack.keep(loads / name, kept) == names[done:]
        shutil.rmtree(loads / name)  # it is gone with the call that brought it
    unpack.unpack(kept, kept / "site")
    assert unpack.unpack(kept, kept / "site") == []
    for path in (path for path in tree.rglob("*") if path.is_file()):
        out = kept / "site" / path.relative_to(tree)
        assert out.read_bytes() == path.read_bytes()
        assert out.stat().st_mode == path.stat().st_mode


def test_pth_files_hold_on_the_path_that_is_set(loads: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for load in loads.iterdir():
        unpack.keep(load, kept)
    unpack.unpack(kept, kept / "site")
    (kept / "site/inner").mkdir()
    (kept / "site/some.pth").write_text("inner\n")
    program = "import sys; print('\\n'.join(sys.path))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(kept / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(kept / "site/inner") in done.stdout.splitlines()


def test_only_libraries_that_are_lacking_are_lent(tmp_path: Path) -> None:
    (tmp_path / unpack.LIBRARIES).mkdir()
    for name in ("libc.so.6", "libnobody.so.1"):
        (tmp_path / unpack.LIBRARIES / name).write_bytes(b"")
    assert unpack.lend(tmp_path) == ["libnobody.so.1"]
    assert unpack.lend(tmp_path) == ["libnobody.so.1"]
    assert [path.name for path in (tmp_path / unpack.LENT).iterdir()] == ["libnobody.so.1"]


def test_a_damaged_piece_is_named(loads: Path, tmp_path: Path) -> None:
    piece = next(path for path in (loads / "load-1").iterdir() if path.name != unpack.MANIFEST)
    piece.write_bytes(piece.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(SystemExit, match="carry its load again"):
        unpack.keep(loads / "load-1", tmp_path / "kept")
    assert "load-1" in unpack.missing(tmp_path / "kept")


def fat(*entries: tuple[int, int, bytes]) -> bytes:
    """Return a fat binary of (kind, architecture, body)."""
    bodies = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, len(body))
        + bytes(12)
        + struct.pack("<I", arch)
        + bytes(32)
        + body
        for kind, arch, body in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(bodies)) + bodies


def test_other_gpus_code_is_dropped(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    entries = [(2, 80, b"a" * 8), (2, 90, b"b" * 8), (1, 120, b"c" * 8), (1, 80, b"d" * 8)]
    foreign = fat((2, 100, b"e" * 8))
    library.write_bytes(b"head" + fat(*entries) + b"between" + foreign + b"tail")
    assert cubins.blank(library, 90) == (3, 2)
    left = fat((2, 90, b"b" * 8), (1, 80, b"d" * 8))
    # The next container starts where it did: what loads it has its address.
    assert library.read_bytes() == (
        b"head" + left.ljust(len(fat(*entries)), b"\0") + b"between" + foreign + b"tail"
    )


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(fat((64, 90, b"x" * 8)))
    with pytest.raises(ValueError, match="kind 64"):
        cubins.blank(library, 90)


def test_what_travels() -> None:
    pins = {pin.partition("==")[0] for pin in requirements()}
    assert {"sglang", "torch", "sglang-kernel", "nixl-cu13", "nvidia-nccl-cu13"} <= pins
    assert not {"nvidia-cublas", "nvidia-cudnn-cu13", "tilelang"} & pins
    assert group_of("torch/lib/libtorch_cuda.so") == "torch-cuda"
    assert group_of("sgl_kernel/flash_ops.abi3.so") == "fa3"
    assert group_of("sglang/srt/server_args.py") == "packages"


def test_provenance_tells_the_gpus() -> None:
    names = provenance()["hardware"]["gpus"]
    assert all(isinstance(name, str) for name in names)
    assert bool(names) == (shutil.which("nvidia-smi") is not None)


def test_the_page_tells_warm_runs_and_sizes_that_were_asked_before(tmp_path: Path) -> None:
    level = {"rate_per_s": 4, "answers_per_s": 3.5, "good_answers_per_s": 3.0}
    chat = {"asked": 2, "answered": 2, "first_token_s": {"p50": 0.1}, "gap_s": {"p99": 0.2}} | level
    batch = {"batch 4": {"tokens_per_s": 9.5, "tokens_per_verification": 2.5}}
    parts: dict[str, dict[str, Any]] = {
        "stage-6-load": {"PD": {"chat": [chat], "long prompts": [chat]}},
        "stage-6-load-first": {"PD": {"chat": [chat], "long prompts": [chat]}},
        "stage-6-load-warm": {"PD": {"chat": [chat], "long prompts": [chat]}},
        "stage-5-eagle": {"cold": batch, "again": batch | {"asked_before": True}},
        "stage-12-kills": {"kills unified": {}},  # has no table
    }
    head = {"finished": True, "dry_run": False, "hardware": {"gpus": ["G"]}, "versions": {}}
    for file, found in parts.items():
        text = json.dumps(head | {"commit": "0", "command": [], "parts": found})
        (tmp_path / f"{file}.json").write_text(text)
    loads = ["stage-6-load", "stage-6-load-first", "stage-6-load-warm"]
    assert list(page.results(tmp_path)) == ["stage-5-eagle", *loads]
    assert "| cold | 4 | 9.5 | 2.5 |  | no |" in page.section(tmp_path)
    assert "| again | 4 | 9.5 | 2.5 |  | yes |" in page.section(tmp_path)
    rows = [line for line in page.short(tmp_path).splitlines() if line.startswith("| PD")]
    marked = ["| PD: chat", "| PD: chat, first", "| PD: chat, warm"]
    assert [row.split(" | ")[0] for row in rows][::2] == marked


def test_old_and_new_names_of_rates_read_alike(tmp_path: Path) -> None:
    times = {"first_token_s": {"p50": 0.1}, "gap_s": {"p99": 0.2}}
    old = {"rate_per_s": 4, "answers_per_s": 3.5, "good_answers_per_s": 3.0}
    new = {"offered_per_s": 4, "completed_per_s": 3.5, "goodput_per_s": 3.0}
    head = {"finished": True, "dry_run": False, "hardware": {"gpus": ["G"]}, "versions": {}}
    pages = []
    for load in (
        times | old | {"asked": 9, "answered": 8},
        times | new | {"offered": 9, "completed": 8},
    ):
        parts = {"PD": {"chat": [load], "long prompts": [load]}}
        text = json.dumps(head | {"commit": "0", "command": [], "parts": parts})
        (tmp_path / "stage-6-load.json").write_text(text)
        pages.append(page.section(tmp_path) + page.short(tmp_path))
    assert pages[0] == pages[1]
    assert "| PD | chat | 4 | 3.5 | 3.0 | 8 of 9 | 0.1 |" in pages[1]
