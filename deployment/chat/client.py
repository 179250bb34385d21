"""One question to the gateway, as a stream of chunks; whatever refuses it is one sentence."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

CONNECT_TIMEOUT_S = 5.0
# A tunnel or a proxy of this machine's environment leads away from it.
DIRECT: dict[str, None] = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}
HINTS = {
    "invalid_api_key": "give it with --api-key or API_KEY",
    "chat_not_supported": "ask with --complete",
}


class Refused(Exception):
    """A sentence for who asked."""


@dataclass(frozen=True)
class Chunk:
    """What came at once: text, a flag a token, the steps' draft trees, and at last the metrics."""

    text: str
    from_draft: list[bool] = field(default_factory=list)
    trees: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


class Client:
    """Talks to one gateway. `transport` takes the place of the network, for tests."""

    def __init__(
        self, url: str, api_key: str = "", transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            # An answer may wait in a queue for long: what bounds it is the gateway's own limit.
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            mounts=DIRECT,
            transport=transport,
        )

    def model(self) -> dict[str, Any]:
        """The card of the model served. Raises Refused."""
        try:
            answer = self._http.get("/v1/models")
            _check(answer)
            card: dict[str, Any] = answer.json()["data"][0]
        except httpx.TransportError as error:
            raise self._lost(error) from None
        except (ValueError, LookupError, TypeError):
            raise Refused(f"What answers at {self.url} is not the gateway.") from None
        return card

    def ask(self, path: str, body: dict[str, Any]) -> Generator[Chunk, None, None]:
        """Chunks of the answer. Closing the generator cancels the request there.

        Raises Refused.
        """
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code != 200:
                    answer.read()
                    _check(answer)
                for data in events(answer.iter_bytes()):
                    if data == "[DONE]":
                        return
                    yield _chunk(json.loads(data))
            raise Refused(f"{self.url} ended the answer early.")
        except httpx.TransportError as error:
            raise self._lost(error) from None
        except (ValueError, LookupError, TypeError):
            raise Refused(f"What answers at {self.url} is not the gateway.") from None

    def _lost(self, error: httpx.TransportError) -> Refused:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Refused(f"No gateway answers at {self.url}: start one, or set --url.")
        return Refused(f"The connection to {self.url} broke ({error or type(error).__name__}).")


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events, without the comments that keep a connection alive.

    Lines are split here, since httpx's also end at U+2028 and the like, which JSON may hold.
    """
    rest, data = b"", []
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removesuffix(b"\r").removeprefix(b" "))
            elif line in (b"", b"\r") and data:
                yield b"\n".join(data).decode()
                data = []


def _chunk(body: dict[str, Any]) -> Chunk:
    if "error" in body:
        raise Refused(_sentence(body, ""))
    choice = body["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return Chunk(
        text or "",
        choice.get("from_draft", []),
        choice.get("draft_trees", []),
        body.get("metrics", {}).get("speculative_decoding", {}),
    )


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    raise Refused(
        _sentence(body, answer.headers.get("retry-after", ""))
        or f"{answer.url} answered with status {answer.status_code}."
    )


def _sentence(body: Any, retry_after: str) -> str:
    """The gateway's words, with what else helps; empty where it said nothing."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return ""
    more = [HINTS[error["code"]]] if error.get("code") in HINTS else []
    more += [f"Retry-After: {retry_after} s"] if retry_after else []
    sentence = " ".join(error["message"].split())
    return f"{sentence.rstrip('.')} ({'; '.join(more)})." if more else sentence
