#!/usr/bin/env bash
# Starts the gateway (tier 1) alone, in the foreground, from this checkout.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=value...] api-server.sh
Starts the gateway (tier 1) alone, until Ctrl-C or SIGTERM. The first time it makes .venv, without
llama.cpp: a gateway's machine needs no compiler. It may start before its model servers.

  deployment/api-server.sh                              on port 8000, for a model server beside it
  MODEL_SERVER_URLS=http://10.0.0.1:8001,http://10.0.0.2:8001 deployment/api-server.sh
                                                        for model servers of other machines
  PORT=8010 deployment/api-server.sh                    on another port
  PYTHON=python3.12 deployment/api-server.sh            chooses the interpreter (3.10 to 3.13)

Settings are variables of the environment, then of .env; .env.example has all of them.
END
}

case ${1:-} in
'') ;;
-h | --help) usage && exit ;;
*) usage >&2 && exit 2 ;;
esac

deployment=$(cd "$(dirname "$0")" && pwd)
"$deployment/setup.sh" gateway
exec "$deployment/../.venv/bin/python" "$deployment/run.py" gateway
