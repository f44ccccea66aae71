"""Write README.md and plots from the results beside it: no figure is typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import sys

from benchmarks import plots
from benchmarks.gpu import page as gpu
from benchmarks.provenance import RESULTS, ROOT
from benchmarks.sections import SECTIONS, Result

PAGE = ROOT / "benchmarks/README.md"
PLOTS = ROOT / "benchmarks/plots"

HEAD = """# Measurements

Made by `python -m benchmarks.report` from the files in `results`, which hold the raw numbers. Every
table names its file, the machine, the versions and the commit. Times are those of that machine, a
small one that often had other work; what carries over are ratios within one table. **No GPU was
used, but for the last chapter.**

Run one with the command above its table; `--quick` makes a short run that is not kept.
"""


def origin(name: str, result: Result) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    hardware = result["hardware"]
    cpu = hardware.get("cpu", hardware.get("machine"))
    commit = result["commit"][:12] + ("+" if result["commit"].endswith("+") else "")
    command = " ".join(result.get("command", ["python", "-m", f"benchmarks.bench_{name}"]))
    return (
        f"`{command}` → `results/{name}.json`: {hardware['cpus']} × {cpu}, no GPU; {versions}; "
        f"commit {commit}.\n"
    )


def results() -> dict[str, Result]:
    """Return every result that a section shows, by its name."""
    paths = {name: RESULTS / f"{name}.json" for name in SECTIONS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def page() -> str:
    found, parts = results(), [HEAD]
    for name, (title, render) in SECTIONS.items():
        if name not in found:
            parts.append(f"## {title}\n\nNot measured.\n")
            continue
        result = found[name]
        pictures = [f"![{plot}](plots/{plot}.png)\n" for plot in plots.names(name, result)]
        parts.append(f"## {title}\n\n{origin(name, result)}\n{render(result)}")
        parts += pictures
    parts.append(gpu.section())
    return "\n".join(parts)


def main() -> int:
    for name, result in results().items():
        for plot in plots.names(name, result):
            plots.write(name, plot, result, PLOTS)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
