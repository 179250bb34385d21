#!/usr/bin/env bash
# Checks a running service: [API_KEY=KEY] tests/smoke.sh [URL]. One line a check; exit code 0 only if
# all hold.
# shellcheck disable=SC2317,SC2329  # the checks are called by name, through check
set -u

url=${1:-http://127.0.0.1:8000}
url=${url%/}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# check NAME COMMAND...: runs the command and says whether it held.
check() {
    local name=$1
    shift
    if "$@"; then
        echo "ok    $name"
    else
        echo "FAIL  $name"
        failed=1
    fi
}

get() {
    curl --silent --show-error --max-time 30 "$url$1" \
        ${API_KEY:+--header "authorization: Bearer $API_KEY"}
}

post() {
    curl --silent --show-error --no-buffer --max-time 120 "$url$1" \
        ${API_KEY:+--header "authorization: Bearer $API_KEY"} \
        --header 'content-type: application/json' --data "$2" "${@:3}"
}

status_of() {
    curl --silent --output /dev/null --max-time 30 --write-out '%{http_code}' "$url$1"
}

is_alive() { get /health | grep -q '"status":"alive"'; }
is_ready() { [ "$(status_of /ready)" = 200 ]; }
has_docs() { get /docs | grep -qi swagger && get /openapi.json | grep -q '"/v1/completions"'; }
has_models() { get /v1/models | grep -q '"object":"model"'; }
has_metrics() { get /metrics | grep -q '^medusa_gateway_batch_size_count'; }

can_chat() { get / | grep -q '"chat":true'; }

chats() {
    post /v1/chat/completions \
        '{"messages": [{"role": "user", "content": "Name the capital of France."}], "max_tokens": 8}' |
        grep -q '"role":"assistant"'
}

completes() {
    post /v1/completions '{"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}' |
        grep -q '"completion_tokens":[1-9]'
}

generates() {
    post /generate '{"prompt": "Once upon a time", "max_tokens": 8}' | grep -q '"total_ms":'
}

streams() {
    post /v1/completions '{"prompt": "Once upon a time", "max_tokens": 8, "stream": true}' \
        >"$work/stream" || return 1
    grep -q '^data: {"id":"cmpl-' "$work/stream" &&
        [ "$(grep '^data: ' "$work/stream" | tail -n 1)" = 'data: [DONE]' ]
}

refuses_clearly() {
    post /v1/completions '{"prompt": ""}' --write-out '\n%{http_code}' >"$work/refusal"
    [ "$(tail -n 1 "$work/refusal")" = 400 ] &&
        grep -q '"message":"prompt is empty' "$work/refusal"
}

four_at_once() {
    local again="$url/v1/completions" # in one process: a batch does not wait long for the next
    post /v1/completions '{"prompt": "Once upon a time", "max_tokens": 8}' \
        "$again" "$again" "$again" --parallel --parallel-immediate --no-progress-meter \
        --output "$work/1" --output "$work/2" --output "$work/3" --output "$work/4" \
        --write-out 'size %header{x-batch-size} id %header{x-batch-id}\n' >"$work/batches"
    [ "$(grep -c '^size 4 id ' "$work/batches")" = 4 ] &&
        [ "$(sort -u "$work/batches" | wc -l)" -eq 1 ]
}

# Others may use the service too, and then four of ours need not be the four of a batch.
share_a_batch() { four_at_once || four_at_once || four_at_once; }

echo "checking $url"
check "the gateway is alive" is_alive
check "a model server is ready" is_ready
check "/docs and its OpenAPI document are there" has_docs
check "the model is listed" has_models
if can_chat; then
    check "a chat" chats
else
    echo "skip  a chat: the model has no chat template"
fi
check "a completion" completes
check "/generate says where the time went" generates
check "a stream ends in [DONE]" streams
check "an empty prompt is a clear 400" refuses_clearly
check "four at once share one batch" share_a_batch
check "metrics are counted" has_metrics
exit "$failed"
