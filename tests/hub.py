"""A small Hugging Face hub on loopback, with faults: what a downloader asks for, over real HTTP.

As on the real one, a file's address redirects to another host, which serves its bytes.
`python hub.py FOLDER`, in a container called `hub` and `bytes`, serves FOLDER/OWNER/REPO/FILE.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

COMMIT = "c0ffee" + "0" * 34
_CHUNK_BYTES = 65_536


@dataclass
class Faults:
    """What goes wrong. Bytes are counted per answer."""

    status: int | None = None  # every request is answered so
    token: str | None = None  # requests without it are refused
    cut_after: int | None = None  # the connection breaks ...
    cuts: int = 0  # ... in so many answers
    stall_after: int | None = None  # the answer goes on when `resume` is set
    resume: threading.Event = field(default_factory=threading.Event)
    spoiled: bool = False  # another first byte than stated
    no_ranges: bool = False
    stated_size: int | None = None
    stated_checksum: bool = True


@dataclass(frozen=True)
class Asked:
    """One request for bytes: where they began, and the token that came along."""

    file: str
    start: int
    authorization: str | None


class Hub:
    """Serves files by OWNER/REPO/FILE. `asked` holds the requests for bytes."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, bytes_host: str = "localhost"
    ) -> None:
        self.files: dict[str, Path] = {}
        self.digests: dict[str, str] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.num_requests = 0
        self.stalled = threading.Event()
        hub = self

        class Handler(_Handler):
            @property
            def hub(self) -> Hub:
                return hub

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        self.bytes_url = f"http://{bytes_host}:{self.port}/bytes"

    def add(self, name: str, path: Path) -> None:
        self.files[name] = path
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_CHUNK_BYTES):
                digest.update(block)
        self.digests[name] = digest.hexdigest()

    def add_all(self, folder: Path) -> None:
        """Every file OWNER/REPO/FILE below a folder."""
        for path in folder.glob("*/*/*"):
            self.add(path.relative_to(folder).as_posix(), path)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def serve_forever(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self.faults.resume.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that downloads: this hub and no other, and nothing of this user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "*",
        }
        return kept | own


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, faults = self.hub, self.hub.faults
        hub.num_requests += 1
        if self.path.startswith("/bytes/"):
            return self._send_bytes(self.path.removeprefix("/bytes/"))
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = f"{name}/{rest.partition('/')[2]}"
        if faults.token and self.headers["Authorization"] != f"Bearer {faults.token}":
            return self._empty(401)
        if faults.status:
            return self._empty(faults.status)
        if name not in hub.files:
            return self._empty(404, {"X-Error-Code": "EntryNotFound"})
        size = faults.stated_size or hub.files[name].stat().st_size
        stated = {"X-Linked-Etag": f'"{hub.digests[name]}"'} if faults.stated_checksum else {}
        return self._empty(
            302,
            {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(size),
                "Location": f"{hub.bytes_url}/{name}",
                **stated,
            },
        )

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_bytes(self, name: str) -> None:
        path, faults = self.hub.files[name], self.hub.faults
        size = path.stat().st_size
        wanted = self.headers["Range"] or "bytes=0-"
        start = 0 if faults.no_ranges else int(wanted.removeprefix("bytes=").partition("-")[0])
        self.hub.asked.append(Asked(name, start, self.headers["Authorization"]))
        self.send_response(200 if faults.no_ranges else 206)
        if not faults.no_ranges:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        with path.open("rb") as file:
            if faults.spoiled and start == 0:
                self.wfile.write(bytes([file.read(1)[0] ^ 1]))
                start = 1
            file.seek(start)
            self._write(file, size - start)

    def _write(self, file: BinaryIO, num_bytes: int) -> None:
        faults = self.hub.faults
        cut = faults.cut_after if faults.cuts else None
        stop = next((n for n in (cut, faults.stall_after) if n is not None), num_bytes)
        self._copy(file, min(stop, num_bytes))
        if cut is not None:
            faults.cuts -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif stop < num_bytes:
            self.hub.stalled.set()
            faults.resume.wait()
            self._copy(file, num_bytes - stop)

    def _copy(self, file: BinaryIO, num_bytes: int) -> None:
        while num_bytes and (block := file.read(min(num_bytes, _CHUNK_BYTES))):
            num_bytes -= self.wfile.write(block)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def main() -> None:
    made = Hub("0.0.0.0", 8080, "bytes")
    made.add_all(Path(sys.argv[1]))
    made.serve_forever()


if __name__ == "__main__":
    main()
