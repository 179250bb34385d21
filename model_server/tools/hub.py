"""Files of a Hugging Face hub: what it states of them, and fetching them.

HF_TOKEN, HF_ENDPOINT and the library's other variables are honoured. The library keeps nothing of
an interrupted download, so the bytes are fetched here, over its session, into FILE.CHECKSUM.part.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from model_server import places
from model_server.errors import DownloadError
from model_server.tools.presets import HubFile
from model_server.tools.progress import Progress, in_words

_CHECKSUM = re.compile("[0-9a-f]{64}|[0-9a-f]{40}")
_BLOCK_BYTES = 2**24
_TRIES, _PAUSE_S = 4, 1.0
# Bytes as they are: with a compressed body no range could be asked for.
_PLAIN = {"Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Download:
    """A file as the hub states it. `checksum`: SHA-256 of a large file, git's SHA-1 of a small."""

    source: HubFile
    target: Path
    url: str
    size: int
    checksum: str

    @property
    def part(self) -> Path:
        """Where the bytes gather. Another version of the file has another name."""
        return self.target.with_name(f"{self.target.name}.{self.checksum[:12]}.part")

    @property
    def missing_bytes(self) -> int:
        """What is still to be fetched."""
        return self.size - (self.part.stat().st_size if self.part.exists() else 0)

    def run(self) -> None:
        """Fetch what is missing, check it, and give it its name.

        Raises DownloadError, or OSError of the disk; what was fetched is kept unless it is wrong.
        """
        places.make(self.target.parent)
        if self.missing_bytes < 0:
            self.part.unlink()
        with self.part.open("ab") as file:
            self._lock(file)
            with (
                _in_words(self.source, self.target),
                Progress(self.source.name, self.size, in_bytes=True) as progress,
            ):
                self._fetch(file, progress)
            file.flush()
            self._check()
            _note(self.target).write_text(f"{_described(self.source)}\n")
            os.replace(self.part, self.target)
        for other_version in self.target.parent.glob(f"{self.target.name}.*.part"):
            other_version.unlink()
        print(f"  {self.target}: {in_words(self.size)}, checksum verified", flush=True)

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(str(self.source), "another process is fetching it") from None

    def _fetch(self, file: BinaryIO, progress: Progress) -> None:
        """Ask again where the connection is lost; give up when several tries bring nothing."""
        failures = 0
        while (start := file.tell()) < self.size:
            try:
                self._fetch_rest(file, progress)
            except httpx2.TransportError:
                failures = 1 if file.tell() > start else failures + 1
                if failures == _TRIES:
                    raise
                time.sleep(_PAUSE_S)

    def _fetch_rest(self, file: BinaryIO, progress: Progress) -> None:
        headers = _PLAIN | {"Range": f"bytes={file.tell()}-"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", self.url, headers=headers, timeout=timeout) as answer:
            hf_raise_for_status(answer)
            if answer.status_code != httpx2.codes.PARTIAL_CONTENT:
                file.seek(0)
                file.truncate()
            for block in answer.iter_bytes():
                file.write(block)
                progress(file.tell())
        if file.tell() < self.size:
            raise httpx2.RemoteProtocolError("the answer ended early")

    def _check(self) -> None:
        found = self._digest()
        if found != self.checksum:
            self.part.unlink()
            problem = f"wrong checksum {found[:12]}..., the hub states {self.checksum[:12]}..."
            raise DownloadError(str(self.source), f"{problem}: deleted, run again to fetch it anew")

    def _digest(self) -> str:
        """As the hub computes it: plain SHA-256, or SHA-1 behind git's header."""
        size = self.part.stat().st_size
        plain = len(self.checksum) == hashlib.sha256().digest_size * 2
        digest = hashlib.sha256() if plain else hashlib.sha1(b"blob %d\0" % size)
        done = 0
        with (
            self.part.open("rb") as file,
            Progress(f"checking {self.source.name}", max(size, 1)) as progress,
        ):
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                progress(done := done + len(block))
        return digest.hexdigest()


def is_there(source: HubFile, target: Path) -> bool:
    """Whether it was fetched, or put there by hand. Raises DownloadError where it is another's."""
    if not target.exists():
        return False
    note = _note(target)
    if note.exists() and (known := note.read_text().strip()) != _described(source):
        problem = f"{target} is {known}: name another folder by --out, or remove it"
        raise DownloadError(str(source), problem)
    return True


def _note(target: Path) -> Path:
    """Where it stands which file of which repository a file is."""
    return target.with_name(f"{target.name}.source")


def _described(source: HubFile) -> str:
    return f"{source}, revision {source.revision}"


def look_up(source: HubFile, target: Path) -> Download:
    """Ask the hub what it has. Raises DownloadError."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # errors are told below
    with _in_words(source, target):
        url = hf_hub_url(source.repo, source.file, revision=source.revision)
        found = get_hf_file_metadata(url)
    checksum = found.etag or ""
    if found.size is None or found.commit_hash is None or not _CHECKSUM.fullmatch(checksum):
        problem = f"{constants.ENDPOINT} states no size, commit or checksum of it: no such hub?"
        raise DownloadError(str(source), problem)
    exact = hf_hub_url(source.repo, source.file, revision=found.commit_hash)
    return Download(source, target, exact, found.size, checksum)


@contextmanager
def _in_words(source: HubFile, target: Path) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise DownloadError(str(source), str(error)) from None
    except HfHubHTTPError as error:
        raise DownloadError(str(source), _refusal(source, error.response.status_code)) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled) as error:
        problem = (
            f"no connection to {constants.ENDPOINT} ({str(error) or type(error).__name__}): "
            f"run again, what was fetched is kept, or put the file at {target} yourself"
        )
        raise DownloadError(str(source), problem) from None


def _refusal(source: HubFile, status: int) -> str:
    if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
        return (
            f"access refused ({status}): {source.repo} is private, gated or doesn't exist; "
            f"check the name, accept its terms at {constants.ENDPOINT}/{source.repo}, "
            "or set HF_TOKEN to a token that may read it"
        )
    if status == httpx2.codes.NOT_FOUND:
        return f"not found (404) at {constants.ENDPOINT}, revision {source.revision}"
    return f"{constants.ENDPOINT} answers {status}: try again later, what was fetched is kept"
