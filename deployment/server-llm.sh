#!/usr/bin/env bash
# Starts the model server (tier 2) alone, in the foreground, from this checkout.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=value...] server-llm.sh
Starts the model server (tier 2) alone, until Ctrl-C or SIGTERM. The first time it makes .venv.

  deployment/server-llm.sh                              serves the demo model on 127.0.0.1:8001
  MODEL=vicuna-7b QUANT=Q8_0 deployment/server-llm.sh   a name in models/, a folder or a GGUF file
  MODEL_SERVER_HOST=0.0.0.0 deployment/server-llm.sh    for gateways of other machines; it asks for
                                                        no key, so keep the port inside
  CMAKE_ARGS="-DGGML_CUDA=on" deployment/server-llm.sh  builds llama.cpp for NVIDIA GPUs
  PYTHON=python3.12 deployment/server-llm.sh            chooses the interpreter (3.10 to 3.13)

Settings are variables of the environment, then of .env; .env.example has all of them.
END
}

case ${1:-} in
'') ;;
-h | --help) usage && exit ;;
*) usage >&2 && exit 2 ;;
esac

deployment=$(cd "$(dirname "$0")" && pwd)
"$deployment/setup.sh" serve
exec "$deployment/../.venv/bin/python" "$deployment/run.py" model-server
