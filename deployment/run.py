"""`make run`: start both tiers, say where to look, stop them together; `run.py TIER`: become one.

Settings come from the environment, then from `.env` if there is one.
MODEL is a GGUF file, or a folder, or a folder's name in models/. A folder's base is served with its
medusa-heads.gguf if it has that; QUANT chooses where there are several bases.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.error import HTTPError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this file is run as a script, from anywhere

from deployment import needs  # noqa: E402
from deployment.env_file import read_env_file  # noqa: E402
from deployment.needs import CannotStart  # noqa: E402
from deployment.processes import (  # noqa: E402
    STOP_SIGNALS,
    Processes,
    Tier,
    what_follows,
)
from model_server import places  # noqa: E402
from model_server.contract.variables import almost  # noqa: E402

MODELS = places.models() if places.INSTALLED else ROOT / "models"
CHOICES = ("MODEL", "QUANT", "CMAKE_ARGS")  # beside the settings of both tiers
HEADS_FILE = "medusa-heads.gguf"
# Settings that name files: the processes run elsewhere than who started them.
PATHS = ("MODEL_PATH", "MEDUSA_PATH", "CHAT_TEMPLATE", "API_KEYS_FILE")
TIERS = {"model-server": "model_server", "gateway": "api"}
PROGRESS_EVERY_S = 10
ANY_HOST = ("", "0.0.0.0", "::")
# A proxy of this machine's environment leads away from it.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Stop(Exception):
    """Someone asked to stop."""


def settings() -> dict[str, str]:
    """What both processes get: `.env`, overridden by the environment."""
    given = {name: value for name, value in os.environ.items() if value}
    here = Path.cwd() if places.INSTALLED else ROOT
    env = {**read_env_file(here / ".env"), **given}
    for name in PATHS:
        if env.get(name) and (here / env[name]).is_file():
            env[name] = str(here / env[name])
    env["HOST"] = env.get("HOST") or "0.0.0.0"
    env["PORT"] = env.get("PORT") or "8000"
    env["MODEL_SERVER_HOST"] = env.get("MODEL_SERVER_HOST") or "127.0.0.1"
    port = env["MODEL_SERVER_PORT"] = env.get("MODEL_SERVER_PORT") or "8001"
    env["MODEL_SERVER_URLS"] = env.get("MODEL_SERVER_URLS") or f"http://127.0.0.1:{port}"
    return env


def environment() -> dict[str, str]:
    """The settings, overridden by MODEL.

    Raises CannotStart when MODEL and QUANT don't lead to one file.
    """
    env = settings()
    if env.get("MODEL"):
        choose_model(env, env["MODEL"], env.get("QUANT", ""))
    elif env.get("QUANT"):
        raise CannotStart(
            f"QUANT={env['QUANT']} chooses among the files of a folder: name it by MODEL=."
        )
    return env


def choose_model(env: dict[str, str], model: str, quant: str) -> None:
    """Set MODEL_PATH, and MEDUSA_PATH where a folder has heads and none were chosen."""
    path = Path(model).expanduser().absolute()
    if not path.exists() and (MODELS / model).is_dir():
        path = MODELS / model
    if path.is_dir():
        env["MODEL_PATH"] = str(base_in(path, quant))
        if (path / HEADS_FILE).is_file() and not env.get("MEDUSA_PATH"):
            env["MEDUSA_PATH"] = str(path / HEADS_FILE)
    elif quant:
        raise CannotStart(f"QUANT={quant} chooses among the files of a folder: {model} is none.")
    elif path.exists() or path.suffix == ".gguf" or "/" in model:
        env["MODEL_PATH"] = str(path)
    else:
        raise CannotStart(
            f"There is no folder {_shown(MODELS / model)}: run `{places.fetch(model)}` first, "
            "or give MODEL= the path of a GGUF file."
        )


def _shown(folder: Path) -> Path:
    """As one would type it."""
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def base_in(folder: Path, quant: str) -> Path:
    """A folder's base: its only GGUF beside the heads, or the one whose name has QUANT in it."""
    found = sorted(path for path in folder.glob("*.gguf") if path.name != HEADS_FILE)
    bases = [path for path in found if places.shards(path)[0] == path]
    names = ", ".join(path.name for path in bases)
    if not bases:
        raise CannotStart(f"{folder} holds no base model: run `{places.fetch()}` first.")
    if quant:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])", re.IGNORECASE)
        bases = [path for path in bases if word.search(path.stem)]
    if not bases:
        raise CannotStart(
            f"{folder} holds no {quant}, only {names}: `{places.fetch(quant=quant)}` makes "
            f"Vicuna's, `{places.program('model_server.tools.quantize')}` any other."
        )
    if len(bases) > 1:
        raise CannotStart(f"{folder} holds {names}: choose one by its type, such as QUANT=Q8_0.")
    return bases[0]


def say_misspelt(env: dict[str, str]) -> None:
    """Of what stands behind the command; each tier says it of its own settings."""
    in_capitals = {name.upper(): name for name in env if name not in CHOICES}
    cased = [
        f"{in_capitals[name]} is no setting, and is ignored: is {name} meant?"
        for name in CHOICES
        if name in in_capitals
    ]
    for sentence in [*cased, *almost(CHOICES, env)]:
        print(sentence, file=sys.stderr, flush=True)


def check(env: dict[str, str]) -> None:
    """Find what would stop a start before anything is started."""
    if env.get("MODEL_PATH") and not Path(env["MODEL_PATH"]).is_file():
        name = "MODEL" if env.get("MODEL") else "MODEL_PATH"
        raise CannotStart(f"There is no model file {env['MODEL_PATH']}: check {name}=.")
    check_address("HOST", env.get("HOST", "0.0.0.0"), "PORT", env["PORT"])
    model_host = env.get("MODEL_SERVER_HOST", "127.0.0.1")
    check_address("MODEL_SERVER_HOST", model_host, "MODEL_SERVER_PORT", env["MODEL_SERVER_PORT"])
    if env["PORT"] == env["MODEL_SERVER_PORT"]:
        raise CannotStart(f"PORT and MODEL_SERVER_PORT are both {env['PORT']}: choose two.")


def check_address(host_name: str, host: str, port_name: str, port: str) -> None:
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise CannotStart(f"{port_name}={port} is no port: choose one from 1 to 65535.")
    no_host = CannotStart(
        f"{host_name} {host} is no address of this machine: 0.0.0.0 stands for all of them, "
        "127.0.0.1 is for this machine only."
    )
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise no_host from None
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise no_host from None
        raise CannotStart(
            f"Port {port} can't be used ({error.strerror}): stop the program that uses it, "
            f"or choose another, such as {port_name}={int(port) % 65_000 + 10}."
        ) from None


def url_of(host: str, port: str) -> str:
    """Where this machine reaches what listens there."""
    host = "127.0.0.1" if host in ANY_HOST else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def why_not_ready(url: str) -> str:
    """Empty: it is ready."""
    try:
        with _DIRECT.open(f"{url}/ready", timeout=2):
            return ""
    except HTTPError as error:
        with error, suppress(ValueError, AttributeError, OSError, HTTPException):
            return str(json.load(error).get("reason") or error)
        return str(error)
    except OSError:
        return f"{url} doesn't answer"


def watch(processes: Processes, model_server: Tier, env: dict[str, str]) -> int:
    """Say when it is ready, then wait until what ends is not started again. The exit code."""
    url = url_of(env.get("HOST", ""), env["PORT"])
    model_url = url_of(env.get("MODEL_SERVER_HOST", ""), env["MODEL_SERVER_PORT"])
    started = shown = time.monotonic()
    ready = False
    while True:
        if (ended := processes.ended()) is not None:
            goes_on, sentence = what_follows(ended)
            print(sentence, file=sys.stderr, flush=True)
            if not goes_on:
                return max(ended.process.returncode, 1)
        reason = "" if ready else why_not_ready(url)
        # Before it is said: who is told so counts on a model server that is started again.
        model_server.was_ready = model_server.was_ready or not why_not_ready(model_url)
        if not ready and not reason:
            ready = True
            shown_url = url.replace("127.0.0.1", "localhost")
            say_ready(shown_url, with_key=bool(env.get("API_KEYS_FILE")))
            if not env.get("MODEL_PATH"):
                print("The demo model is tiny and often wrong: MODEL= names another.\n", flush=True)
        elif reason and time.monotonic() - shown > PROGRESS_EVERY_S:
            shown = time.monotonic()
            # The model server itself says how far it is.
            why = f": {reason}" if model_server.was_ready else ""
            print(f"Still loading ({shown - started:.0f} s){why}.", flush=True)
        time.sleep(0.5)


def say_ready(url: str, *, with_key: bool) -> None:
    key = "-H 'authorization: Bearer YOUR_KEY' " if with_key else ""
    message = '{"role": "user", "content": "Name the capital of France."}'
    body = f'{{"messages": [{message}], "temperature": 0}}'
    print(
        "\nReady.\n"
        f"  Try it in a browser:  {url}\n"
        f"  Documentation:        {url}/docs\n"
        "  Or paste this into another terminal:\n\n"
        f"  curl {url}/v1/chat/completions "
        f"{key}-H 'content-type: application/json' -d '{body}'\n\n"
        "Ctrl-C stops both processes.\n",
        flush=True,
    )


def _ask_to_stop(number: int, frame: FrameType | None) -> None:
    # Once: uvx and terminals may both pass it on. Who stops listens again.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stop


def become(tier: str) -> NoReturn:
    """Turn into one tier's own process: signals and the exit code are that one's."""
    # The gateway needs no model: its MODEL may be on another machine.
    env = settings() if tier == "gateway" else environment()
    if tier == "model-server":
        say_misspelt(env)
        needs.llama(env)
        needs.demo(env)
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "-m", TIERS[tier]], env)


def run_both() -> int:
    """Both tiers until someone asks to stop, or one of them ends. Returns the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, _ask_to_stop)
    processes = Processes(ROOT)
    try:
        env = environment()
        say_misspelt(env)
        check(env)
        needs.llama(env)
        needs.demo(env)
        print("Starting the model server and the gateway; a large model takes a while to load.")
        model_server = processes.start("model server", "model_server", env)
        processes.start("gateway", "api", env)
        return watch(processes, model_server, env)
    except Stop:
        print("\nStopping: open answers may finish. Ctrl-C again stops at once.", flush=True)
        return 0
    finally:
        processes.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tier", nargs="?", choices=TIERS, help="this one alone; else both")
    tier = parser.parse_args().tier
    try:
        return become(tier) if tier else run_both()
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
