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
from dataclasses import dataclass
from pathlib import Path

from model_server import places
from model_server.errors import SettingError
from model_server.tools import convert_heads, hub
from model_server.tools.outcome import exit_code, require_space
from model_server.tools.presets import PRESETS, HubFile, Preset
from model_server.tools.progress import in_words
from model_server.tools.quantize import quantize
from model_server.tools.quantizer import TYPES

MODELS = places.models() if places.INSTALLED else Path(os.path.relpath(places.models()))
HEADS_FILE = "medusa-heads.gguf"
_FILE = re.compile(r"(?P<repo>[^/]+/[^/]+)/(?P<file>.+)")
_PAGE = re.compile(r"https?://[^/]+/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?]+)(?:\?.*)?")


@dataclass(frozen=True)
class PresetFiles:
    """A preset's files in a folder: base and heads as published, and as served."""

    preset: Preset
    quant: str
    folder: Path

    @property
    def published_base(self) -> Path:
        """The base as fetched, from which other types are made."""
        return self.folder / self.preset.base.name

    @property
    def base(self) -> Path:
        """The base in the type asked for."""
        return self.folder / self.preset.file_name(self.quant)

    @property
    def published_heads(self) -> Path:
        """The heads as fetched."""
        return self.folder / self.preset.heads.name

    @property
    def heads(self) -> Path:
        """The heads as a head file."""
        return self.folder / HEADS_FILE

    def look_up(self) -> list[hub.Download]:
        """What must be fetched. Raises DownloadError; NoSpaceError when not all of it fits."""
        wanted = []
        if not self.base.exists():
            wanted.append((self.preset.base, self.published_base))
        if not self.heads.exists():
            wanted.append((self.preset.heads, self.published_heads))
        found = [hub.look_up(*each) for each in wanted if not each[1].exists()]
        sizes = {download.target: download.size for download in found}
        missing_bytes = sum(download.missing_bytes for download in found)
        require_space(self.folder, missing_bytes + self._made_bytes(sizes))
        return found

    def _made_bytes(self, sizes: dict[Path, int]) -> int:
        """About what quantizing and converting will write."""
        made = 0.0
        if not self.base.exists() and self.base != self.published_base:
            size = sizes.get(self.published_base) or self.published_base.stat().st_size
            made += size * TYPES[self.quant] / TYPES[self.preset.quant]
        if not self.heads.exists():
            size = sizes.get(self.published_heads) or self.published_heads.stat().st_size
            made += size * TYPES["Q8_0"] / TYPES["F16"]
        return int(made)


def prepare(plan: PresetFiles) -> None:
    """Make a preset's base and heads lie in its folder, fetching and making what is missing.

    Raises DownloadError, CheckpointError, NoSpaceError, or OSError of the disk.
    """
    if plan.base.exists() and plan.heads.exists():
        convert_heads.read_base(plan.base)
        print(f"Nothing to do: {plan.base} and {plan.heads} are there.")
        return
    downloads = plan.look_up()
    if downloads:
        missing = in_words(sum(download.missing_bytes for download in downloads))
        print(f"Fetching {missing} to {plan.folder}.", flush=True)
    for download in downloads:
        download.run()
    if not plan.base.exists():
        quantize(plan.published_base, plan.base, plan.quant)
    if not plan.heads.exists():
        print(f"Converting {plan.published_heads}.", flush=True)
        options = convert_heads.ConvertOptions(base=convert_heads.read_base(plan.base))
        convert_heads.convert(plan.published_heads, plan.heads, options)
        size = in_words(plan.heads.stat().st_size)
        print(f"  {plan.heads}: {size}; {plan.published_heads.name} is not needed any more")


def fetch(source: HubFile, folder: Path) -> None:
    """Fetch one file into a folder. Raises DownloadError, NoSpaceError, or OSError of the disk."""
    target = folder / source.name
    if target.exists():
        print(f"Nothing to do: {target} is there.")
        return
    download = hub.look_up(source, target)
    require_space(folder, download.missing_bytes)
    download.run()


def source_named(what: str, revision: str) -> HubFile:
    """OWNER/REPO/FILE, or the address of a file's page. Raises SettingError."""
    if page := _PAGE.fullmatch(what):
        return HubFile(page[1], page[3], page[2])
    if "://" not in what and (file := _FILE.fullmatch(what)):
        return HubFile(file["repo"], file["file"], revision)
    names = ", ".join(PRESETS)
    raise SettingError(what, f"must be one of {names}, or OWNER/REPO/FILE of a hub")


def next_command(target: Path) -> str:
    """What one does with a file that was fetched."""
    if target.suffix == ".gguf":
        return places.serve(str(_shown(target)))
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
    return sorted(path for path in folder.glob("*.gguf") if path.name != HEADS_FILE)


def _run(args: argparse.Namespace) -> None:
    if args.what not in PRESETS:
        source = source_named(args.what, args.revision)
        if args.quant:
            problem = f"goes with {', '.join(PRESETS)}; for other files there is `quantize`"
            raise SettingError("--quant", problem)
        folder = args.out or MODELS / source.repo.partition("/")[2]
        fetch(source, folder)
        print(f"Next: {next_command(folder / source.name)}")
        return
    preset = PRESETS[args.what]
    plan = PresetFiles(preset, args.quant or preset.quant, args.out or MODELS / args.what)
    prepare(plan)
    several = len(_bases(plan.folder)) > 1
    shown = args.what if plan.folder == MODELS / args.what else plan.folder
    print(f"Serve them: {places.serve(str(shown), plan.quant if several else '')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch. The exit code is 1, with one sentence on stderr, when that can't be done."""
    parser = argparse.ArgumentParser(
        prog=places.program("model_server.tools.download"), description=__doc__
    )
    names = ", ".join(PRESETS)
    parser.add_argument("what", metavar="WHAT", help=f"{names}, or OWNER/REPO/FILE of a hub")
    types = [type_ for type_ in TYPES if type_ != "F16"]  # nothing that is published has it
    parser.add_argument("--quant", type=str.upper, choices=types, help="type of a preset's base")
    parser.add_argument("--revision", default="main", help="of OWNER/REPO: branch, tag or commit")
    parser.add_argument("--out", type=Path, help=f"folder; else one in {MODELS}")
    args = parser.parse_args(arguments)
    kept = "what was fetched is kept, the same command continues"
    return exit_code(lambda: _run(args), args.out or MODELS, kept)


if __name__ == "__main__":
    sys.exit(main())
