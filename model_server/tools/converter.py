"""llama.cpp's own converter of Hugging Face checkpoints, with a venv of its own for PyTorch.

Source and venv are made at first use, in the cache, and kept.
"""

from __future__ import annotations

import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_server.errors import ConverterError
from model_server.tools import child, llama_source, run_converter
from model_server.tools.progress import Progress

TORCH = "torch==2.13.0"
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "requirements/")
_WRITTEN = re.compile(r"^Writing: +(\d+)%")
_DISK_FULL_BYTES = 2**20


@dataclass(frozen=True)
class Converter:
    """A Python that has what the converter needs, and the converter."""

    python: Path
    source: Path
    log: Path

    def run(self, checkpoint: Path, target: Path, file_type: str) -> None:
        """Write `target`. Raises ConverterError with what the converter said."""
        command: list[str | Path] = [self.python, "-I", "-u", run_converter.__file__, self.source]
        # The converter fills in what stands in braces.
        outfile = target.with_name(target.name.replace("{", "{{").replace("}", "}}"))
        command += ["--outfile", outfile, "--outtype", file_type.lower(), checkpoint]
        with Progress("writing", 100) as progress:
            ended = child.run(command, self.log, lambda line: _watch(line, progress))
        if ended.code:
            full = shutil.disk_usage(target.parent).free < _DISK_FULL_BYTES
            said = "the disk is full" if full else ended.last_line
            raise ConverterError(f"llama.cpp's converter: {said} (all it said is in {self.log})")


def _watch(line: str, progress: Progress) -> None:
    """A line of the converter's output."""
    if match := _WRITTEN.match(line):
        progress(int(match[1]))


def ready(cache: Path = llama_source.CACHE, venv: Path | None = None) -> Converter:
    """The converter, made ready and saying so if it is not. Raises ConverterError.

    `venv`: one that has all that is needed; None: one in `cache`.
    """
    folder = cache / "convert-base"
    folder.mkdir(parents=True, exist_ok=True)
    name = llama_source.requirement().replace("==", "-")
    source = llama_source.unpacked(folder / name, _PARTS, cache)
    if venv is None:
        venv = folder / "venv"
        _install(venv, source, folder / "pip.log")
    python = venv / "bin" / "python"
    if not python.exists():
        raise ConverterError(f"{venv}: is no venv, it has no bin/python")
    return Converter(python, source, folder / "converter.log")


def _install(venv: Path, source: Path, log: Path) -> None:
    """Make the venv, unless this was done for the same requirements."""
    wanted = [*_required(source / "requirements" / "requirements-convert_hf_to_gguf.txt"), TORCH]
    stamp = venv / ".ready"
    if stamp.exists() and stamp.read_text().split() == wanted:
        return
    index = ["--extra-index-url", _CPU_INDEX] if _reachable(_CPU_INDEX) else []
    size = "250 MB" if index else "250 MB, or some GB if pip only finds PyTorch with CUDA,"
    print(f"Installing PyTorch and transformers, once: {size} to download, 1.2 GB in {venv}")
    print(f"  (pip's own words are in {log})", flush=True)
    made = child.run([sys.executable, "-m", "venv", "--clear", venv], log)
    if made.code:
        raise ConverterError(f"{venv}: can't be made ({made.last_line})")
    pip = ["-m", "pip", "install", "--disable-pip-version-check", *index, *wanted]
    ended = child.run([venv / "bin" / "python", *pip], log)
    if ended.code:
        raise ConverterError(
            f"{TORCH} and transformers can't be installed ({ended.last_line}): make a venv with "
            f"`pip install {' '.join(wanted)}` where there is a network, and name it with --venv"
        )
    stamp.write_text("\n".join(wanted))


def _required(file: Path) -> Iterator[str]:
    """The converter's own pins, without spaces, but for PyTorch, which the project pins."""
    for line in file.read_text().splitlines():
        if line.startswith("-r "):
            yield from _required(file.parent / line[3:].strip())
        elif line and not line.startswith(("#", "-", "torch")):
            yield line.replace(" ", "")


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (OSError, ValueError):
        return False
