"""Models from a Hugging Face hub, ready to serve.

WHAT is a preset (vicuna-7b: base model and Medusa heads, converted) or OWNER/REPO/FILE. What is
there is kept, what was interrupted continues. Variables: HF_TOKEN, HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_server import places
from model_server.errors import SettingError
from model_server.tools import options
from model_server.tools.outcome import exit_code, require_space
from model_server.tools.presets import HEADS_FILE, MODELS, PRESETS, HubFile

_FILE = re.compile(r"(?P<repo>[^/]+/[^/]+)/(?P<file>.+)")
_PAGE = re.compile(r"https?://[^/]+/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?#]+)(?:[?#].*)?")


def fetch(source: HubFile, folder: Path) -> None:
    """Fetch one file into a folder. Raises SettingError, DownloadError, NoSpaceError, or OSError of
    the disk.
    """
    _check_endpoint()
    from model_server.tools import hub  # whose library reads the endpoint as it is imported

    target = folder / source.name
    if hub.is_there(source, target):
        print(f"Nothing to do: {target} is there.")
        return
    download = hub.look_up(source, target)
    require_space(folder, download.missing_bytes)
    download.run()


def _check_endpoint() -> None:
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and not _is_url(endpoint):
        problem = f"must be an address with http:// or https:// before it, got {endpoint!r}"
        raise SettingError("HF_ENDPOINT", problem)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def source_named(what: str, revision: str) -> HubFile:
    """OWNER/REPO/FILE, or the address of a file's page. Raises SettingError."""
    if page := _PAGE.fullmatch(what):
        return HubFile(page[1], unquote(page[3]), unquote(page[2]))
    if "://" not in what and (file := _FILE.fullmatch(what)):
        return HubFile(file["repo"], file["file"], revision)
    names = ", ".join(PRESETS)
    raise SettingError(what, f"must be one of {names}, or OWNER/REPO/FILE of a hub")


def next_command(target: Path) -> str:
    """What one does with a file that was fetched."""
    if target.suffix == ".gguf":
        return places.serve(str(_shown(places.shards(target)[0])))
    base = next(iter(_bases(target.parent)), Path("BASE.gguf"))
    heads = target.parent / HEADS_FILE
    convert = places.program("model_server.tools.convert_heads")
    return f"{convert} {target} {heads} --base {base}"


def _shown(target: Path) -> Path:
    """The shortest name for a base that the service understands."""
    if _bases(target.parent) != [target]:
        return target
    return target.parent.relative_to(MODELS) if target.parent.parent == MODELS else target.parent


def _bases(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.gguf") if path.name != HEADS_FILE)
    return [path for path in found if places.shards(path)[0] == path]


def _run(args: argparse.Namespace) -> None:
    if args.what not in PRESETS:
        source = source_named(args.what, args.revision)
        if args.quant:
            problem = f"goes with {', '.join(PRESETS)}; for other files there is `quantize`"
            raise SettingError("--quant", problem)
        folder = args.out or MODELS / source.repo.partition("/")[2]
        fetch(source, folder)
        target = folder / source.name
        if missing := [each.name for each in places.shards(target) if not each.exists()]:
            print(f"Still missing of this model: {', '.join(missing)}")
        else:
            print(f"Next: {next_command(target)}")
        return
    from model_server.tools.preset_files import PresetFiles, prepare  # llama.cpp makes them

    preset = PRESETS[args.what]
    plan = PresetFiles(preset, args.quant or preset.quant, args.out or MODELS / args.what)
    prepare(plan)
    several = len(_bases(plan.folder)) > 1
    shown = args.what if plan.folder == MODELS / args.what else plan.folder
    print(f"Serve them: {places.serve(str(shown), plan.quant if several else '')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = options.fetch(arguments)
    kept = "what was fetched is kept, the same command continues"
    return exit_code(lambda: _run(args), args.out or MODELS, kept)


if __name__ == "__main__":
    sys.exit(main())
