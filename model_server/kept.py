"""What was found out once and still holds at the next start, kept as files in the user's cache.

An entry is found again by everything that it depends on. One that can't be read, or isn't what was
written, is as if it weren't there, and where nothing can be written nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

_MAX_BYTES = 2**20
_FORMAT = 1  # of what is kept: another one finds nothing of this one's
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not hold a start up
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL

Key = Mapping[str, object]
T = TypeVar("T")


def recall(what: str, key: Key, type_: type[T]) -> T | None:
    """What was kept under this key, of this type; None when there is nothing."""
    asked = _spell(key)
    try:
        with _folder() as folder:
            digest, _, body = _read(folder, _file_name(what, asked)).partition(b"\n")
        if digest == _digest(body):
            found, value = json.loads(body)
            return TypeAdapter(type_).validate_python(value) if found == asked else None
    except (OSError, ValueError):
        pass
    return None


def keep(what: str, key: Key, value: object) -> None:
    """Keep a value, JSON's own types, for those who ask with this key."""
    asked = _spell(key)
    body = json.dumps([asked, value]).encode()
    with suppress(OSError), _folder() as folder:
        _write(folder, _file_name(what, asked), _digest(body) + b"\n" + body)


@contextmanager
def _folder() -> Iterator[int]:
    """A descriptor of the folder, made where there is none. Raises OSError.

    Only one that nobody else can write to: what is in it decides what a start leaves out.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not home.is_absolute():  # a user without a home has none either
        raise OSError("there is no cache folder")
    path = home / "medusa"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(f"{path} is not this user's alone")
        yield folder
    finally:
        os.close(folder)


def _read(folder: int, name: str) -> bytes:
    file = os.open(name, _READ, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{name} is no file")
        return os.read(file, _MAX_BYTES)
    finally:
        os.close(file)


def _write(folder: int, name: str, data: bytes) -> None:
    """Others see the file as it was or whole, also those who write it at the same time."""
    part = f"{name}.{secrets.token_hex(8)}"
    try:
        with open(os.open(part, _WRITE, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


def _spell(key: Key) -> str:
    return json.dumps({**key, "format": _FORMAT}, sort_keys=True)


def _file_name(what: str, key: str) -> str:
    return f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
