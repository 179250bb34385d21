#!/usr/bin/env bash
# What a newcomer waits for: an empty folder, an empty home, the wheel. Seconds of installing, of the
# first start (it builds llama.cpp and fetches the demo model) and of the second, and one answer each.
# By hand, since it needs a network and minutes: tests/deployment/from_nothing.sh pip|pipx|uvx WHEEL
set -euo pipefail

way=${1:?usage: from_nothing.sh pip|pipx|uvx WHEEL}
wheel=$(realpath "${2:?usage: from_nothing.sh pip|pipx|uvx WHEEL}")
folder=$(mktemp -d)
pid=
stop() {
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
    pid=
}
trap 'stop; rm -rf "$folder"' EXIT
unset PYTHONPATH VIRTUAL_ENV XDG_CACHE_HOME XDG_DATA_HOME CMAKE_ARGS MODEL MODEL_PATH
export HOME=$folder/home PORT=${PORT:-8790} MODEL_SERVER_PORT=${MODEL_SERVER_PORT:-8791} HOST=127.0.0.1
mkdir -p "$HOME" "$folder/empty"
cd "$folder/empty"

timed() { # timed WHAT COMMAND...
    local what=$1 start=$EPOCHREALTIME
    shift
    "$@"
    awk -v a="$start" -v b="$EPOCHREALTIME" -v what="$what" 'BEGIN { printf "%s: %.1f s\n", what, b - a }'
}

ready() {
    until curl --silent --fail --noproxy '*' "http://127.0.0.1:$PORT/ready" >/dev/null; do
        kill -0 "$pid" || { cat "$folder/log" >&2 && exit 1; }
        sleep 0.1
    done
}

serve() {
    "${command[@]}" serve >"$folder/log" 2>&1 &
    pid=$!
    ready
}

answer() {
    curl --silent --fail --noproxy '*' "http://127.0.0.1:$PORT/v1/chat/completions" \
        -H 'content-type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}' |
        grep --only-matching '"content":"[^"]*"'
}

case $way in
pip)
    python3 -m venv "$folder/venv"
    timed "pip install" "$folder/venv/bin/pip" install --quiet "$wheel"
    command=("$folder/venv/bin/medusa-serve")
    ;;
pipx) command=(pipx run --spec "$wheel" medusa-serve) ;;
uvx) command=(uvx --from "$wheel" medusa-serve) ;;
*) echo "usage: from_nothing.sh pip|pipx|uvx WHEEL" >&2 && exit 2 ;;
esac
[ "$way" = pip ] || timed "$way, to its first --version" "${command[@]}" --version
timed "the first start, until /ready" serve
sed 's/^/  | /' "$folder/log"
answer
stop
timed "the second start, until /ready" serve
answer
timed "stopping" stop
du -sh "$HOME/.cache/medusa"
