"""API keys: a file of names and hashes, read anew when it changes.

`python -m api.admission.keys new NAME` makes a key: the file's line on stdout, the key itself, this
once, on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from api.errors import GatewayError

RELOAD_S = 1.0
_HOW = "make one with `python -m api.admission.keys new NAME`, or `medusa-serve keys new NAME`"
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")

log = logging.getLogger(__name__)


class BadKeyFile(Exception):
    """A sentence that names the file, and the line where it is at fault."""


class Keys:
    """The keys of a file. Raises BadKeyFile at start; later the last good ones stay."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._names = read_keys(path)

    def name_of(self, authorization: str) -> str:
        """Whose key the Authorization header holds. Raises GatewayError."""
        self._reload()
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "There is no API key: send the header Authorization: Bearer KEY."
            raise GatewayError("invalid_api_key", message)
        given = digest(key.strip())
        # Every entry is compared, each in constant time: how long it takes tells nothing.
        names = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        if not names:
            raise GatewayError("invalid_api_key", "The API key is not known to this server.")
        return names[0]

    def _reload(self) -> None:
        if self._clock() - self._looked < RELOAD_S:
            return
        self._looked = self._clock()
        before, self._stamp = self._stamp, _stamp(self._path)
        if self._stamp == before:
            return
        try:
            self._names = read_keys(self._path)
        except BadKeyFile as error:
            log.error("The API keys stay as they were: %s", error)
        else:
            log.info("%s was read again: %d API keys", self._path, len(self._names))


def digest(key: str) -> bytes:
    """What the file holds of a key. A fast hash is right: keys are 256 random bits, which nobody
    guesses, and this runs for every request.
    """
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> Mapping[bytes, str]:
    """Names by digest, from lines `NAME:SHA256` and comments that begin with #."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadKeyFile(f"API_KEYS_FILE {path} cannot be read: {reason}.") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            match = _LINE.fullmatch(text)
            if match is None:
                # The line is not shown: somebody may have written a key into it.
                place = f"API_KEYS_FILE {path}, line {number},"
                raise BadKeyFile(f"{place} is not NAME:SHA256: {_HOW}.")
            names[bytes.fromhex(match[2])] = match[1]
    if not names:
        raise BadKeyFile(f"API_KEYS_FILE {path} holds no key: {_HOW}.")
    return names


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def new_key(name: str) -> tuple[str, str]:
    """A random key, and its line for the file."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, f"{name}:{digest(key).hex()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Makes an API key. `new alice >> keys.txt` adds one to a file of keys."
    )
    commands = parser.add_subparsers(required=True, metavar="new")
    new = commands.add_parser("new", help="print a line for API_KEYS_FILE, and the key on stderr")
    new.add_argument("name", help="who it is for: letters, digits, `.`, `_`, `-`; logs show it")
    name = parser.parse_args().name
    key, line = new_key(name)
    if not _LINE.fullmatch(line):
        parser.error(f"NAME is 1 to 64 letters, digits, `.`, `_` and `-`, got {name!r}")
    print(line)
    print(f"The key of {name}, shown only now: {key}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
