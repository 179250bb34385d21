"""`medusa-serve`: the one command of an installed package."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELP = """\
usage: medusa-serve COMMAND ...

Serves GGUF models of the Llama family on llama.cpp, with Medusa speculative decoding.

serve:
  serve [MODEL] [NAME=VALUE ...]   both tiers, on http://localhost:8000, until Ctrl-C
  gateway [NAME=VALUE ...]         the gateway alone, for model servers elsewhere
  model-server [MODEL] [NAME=VALUE ...]
  chat                             talk to a running service in this terminal
  keys new NAME                    make an API key

models and heads:
  fetch vicuna-7b                  or any file of a hub: fetch OWNER/REPO/FILE
  convert base, convert heads      a Hugging Face checkpoint, published Medusa heads
  quantize                         a base in another type
  heads                            train Medusa heads for a base (needs PyTorch)
  doctor                           do heads fit, what do they win here?
  verify                           does Medusa change the text?

`medusa-serve COMMAND --help` says more. Without MODEL the demo model is served, 93 MB, which the
first start fetches; it builds llama.cpp then, too, and needs a C++ compiler for that."""
SERVE_HELP = """\
usage: medusa-serve {command} [{model}NAME=VALUE ...]

{what}

{examples}

Settings are variables of the environment, then of a file .env in this folder; NAME=VALUE here wins
over both. docs/CONFIGURATION.md has all of them. What is built and fetched is kept in {cache}."""
CONVERT = """\
usage: medusa-serve convert base|heads ...

  convert base     a Hugging Face checkpoint to a base GGUF
  convert heads    published Medusa heads of any layout to a GGUF

`medusa-serve convert base --help` says more."""
WHAT = {
    "serve": "Runs both tiers, the gateway and the model server, until Ctrl-C or SIGTERM.",
    "gateway": "Runs the gateway (tier 1) until Ctrl-C or SIGTERM, before or after model servers.",
    "model-server": "Runs the model server (tier 2) until Ctrl-C or SIGTERM. It asks for no key: "
    "keep it inside.",
}
OF_MODELS = """\
  medusa-serve {command}                              the demo model
  medusa-serve {command} vicuna-7b QUANT=Q4_0         what `medusa-serve fetch vicuna-7b` fetched
  medusa-serve {command} /path/to/any.gguf            any Llama-family GGUF, or a folder of one
  medusa-serve {command} CMAKE_ARGS=-DGGML_CUDA=on    builds llama.cpp for NVIDIA GPUs"""
EXAMPLES = {
    "serve": f"{OF_MODELS}\n  medusa-serve serve PORT=8010 MODEL_SERVER_PORT=8011",
    "gateway": "  medusa-serve gateway MODEL_SERVER_URLS=http://10.0.0.1:8001,http://10.0.0.2:8001",
    "model-server": f"{OF_MODELS}\n  medusa-serve model-server MODEL_SERVER_HOST=0.0.0.0",
}
USAGE_ERROR, INTERRUPTED = 2, 130


class Misused(Exception):
    """A sentence for who typed it."""


def main() -> int:
    """The exit code: 2, after a sentence on stderr, where the command line is wrong."""
    sys.path.insert(0, str(ROOT))  # where both tiers lie, under their own names
    arguments = sys.argv[1:]
    try:
        if not arguments:
            raise Misused(HELP)
        if arguments[0] in ("-h", "--help"):
            print(HELP)
        elif arguments in (["convert", "-h"], ["convert", "--help"]):
            print(CONVERT)
        elif arguments[0] == "--version":
            print(_version())
        else:
            return _find(arguments)()
        return 0
    except Misused as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _find(arguments: list[str]) -> Callable[[], int]:
    from model_server.places import TOOLS

    if arguments[0] in WHAT:
        return lambda: _serve(arguments[0], arguments[1:])
    for length in (2, 1):
        if (name := " ".join(arguments[:length])) in TOOLS:
            return lambda: _use(name, TOOLS[name], arguments[length:])
    if arguments[0] == "convert":
        raise Misused(CONVERT)
    names = [*WHAT, *(name.split()[0] for name in TOOLS)]
    near = get_close_matches(arguments[0], names, 1)
    meant = f"is {near[0]} meant? " if near else ""
    raise Misused(f"medusa-serve has no {arguments[0]}: {meant}--help lists all.")


def _serve(command: str, words: Sequence[str]) -> int:
    from deployment import needs, run

    if "-h" in words or "--help" in words:
        print(_serve_help(command))
        return 0
    os.environ.update(_settings(command, words))
    try:
        return run.run_both() if command == "serve" else run.become(command)
    except needs.CannotStart as error:
        print(error, file=sys.stderr)
        return 1


def _serve_help(command: str) -> str:
    from model_server import places

    return SERVE_HELP.format(
        command=command,
        model="" if command == "gateway" else "MODEL] [",
        what=WHAT[command],
        examples=EXAMPLES[command].format(command=command),
        cache=places.cache(),
    )


def _settings(command: str, words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE as make takes them; one word without = is the model. Raises Misused."""
    from api.config import Settings
    from deployment.run import CHOICES
    from model_server.config import ModelServerSettings

    fields = [*Settings.model_fields, *ModelServerSettings.model_fields]
    known = [*CHOICES, *(name.upper() for name in fields)]
    found: dict[str, str] = {}
    for word in words:
        name, given, value = word.partition("=")
        if not given or "/" in name:
            name, value = "MODEL", word
        if word.startswith("-") or name in found or (name == "MODEL" and command == "gateway"):
            raise Misused(f"{word}: unexpected; see `medusa-serve {command} --help`.")
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise Misused(f"{name} is no setting{f': is {near[0]} meant?' if near else '.'}")
        found[name] = value
    return found


def _use(name: str, module: str, words: Sequence[str]) -> int:
    """A tool, as `python -m` runs it in a checkout."""
    from deployment import needs
    from model_server.tools import options

    sys.argv = [f"medusa-serve {name}", *words]
    # --help and usage errors end here: nobody waits minutes for those.
    if name in options.OF and options.needs_llama(name, options.OF[name](words)):
        try:
            needs.llama(os.environ)
            if name == "verify":
                needs.demo(os.environ)
        except needs.CannotStart as error:
            print(error, file=sys.stderr)
            return 1
    return int(_main_of(module)() or 0)


def _main_of(module: str) -> Callable[[], int | None]:
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    main: Callable[[], int | None] = found.main
    return main


def _version() -> str:
    from importlib.metadata import version

    return f"medusa-serve {version('medusa-serve')}"
