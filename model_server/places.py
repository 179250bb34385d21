"""Where things lie and what a person types: in a checkout, or where pip has installed this."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT.name == "medusa_serve"  # the folder that the wheel puts everything in
COMMAND = "medusa-serve"
# What it runs beside the service, and how a checkout does.
TOOLS = {
    "chat": "deployment.chat",
    "fetch": "model_server.tools.download",
    "convert base": "model_server.tools.convert_base",
    "convert heads": "model_server.tools.convert_heads",
    "quantize": "model_server.tools.quantize",
    "heads": "model_server.training",
    "doctor": "model_server.tools.doctor",
    "verify": "model_server.tools.verify",
    "keys": "api.admission.keys",
}


_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


def shards(path: Path) -> list[Path]:
    """All files of what is split over several, NAME-00001-of-00003.gguf and so on, in order; the
    file itself where its name doesn't say so.
    """
    if not (match := _SHARD.fullmatch(path.name)) or not int(match[2]):
        return [path]
    name, count, suffix = match.groups()
    numbers = range(1, int(count) + 1)
    return [path.with_name(f"{name}-{number:05}-of-{count}{suffix}") for number in numbers]


def cache() -> Path:
    """The user's folder of what can be measured, built or fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "medusa"


def make(folder: Path) -> None:
    """A folder and those around it; the user's cache so that only the user can write to it: what
    lies there is run. Raises OSError.
    """
    if folder.is_relative_to(cache()):
        cache().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def models() -> Path:
    """Where models are fetched to, and found by their name."""
    return cache() / "models" if INSTALLED else ROOT / "models"


def sources() -> Path:
    """Where what is fetched to make something of it is kept."""
    return cache() / "sources" if INSTALLED else ROOT / ".cache"


def llama() -> Path:
    """Where llama.cpp is built for an installed package."""
    return cache() / "llama"


def program(module: str) -> str:
    """How a person calls a tool."""
    names = {of: name for name, of in TOOLS.items()}
    return f"{COMMAND} {names[module]}" if INSTALLED else f"python -m {module}"


def serve(model: str, quant: str = "") -> str:
    """How a person serves a model."""
    start = f"{COMMAND} serve {model}" if INSTALLED else f"make run MODEL={model}"
    return f"{start} QUANT={quant}" if quant else start


def fetch(what: str = "", quant: str = "") -> str:
    """How a person fetches a model; by default Vicuna."""
    if INSTALLED:
        type_ = f" --quant {quant}" if quant else ""
        return f"{COMMAND} fetch {what or 'vicuna-7b'}{type_}"
    named = {"MODEL": what, "QUANT": quant}
    return " ".join(["make model", *(f"{name}={value}" for name, value in named.items() if value)])


def install_torch() -> str:
    """How a person gets what training needs."""
    return f"`pip install '{COMMAND}[train]'`" if INSTALLED else "`make heads`"


def rebuild() -> str:
    """How a person builds llama.cpp anew."""
    if INSTALLED:
        return f"`rm -r {llama()}` and start again"
    return "`make clean && make run`"
