"""Log probabilities of tokens whose bytes are no whole characters, as byte-level ones have them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from model_server.contract.protocol import (
    Event,
    GenerateRequest,
    PositionLogprobs,
    TokenLogprob,
    Tokens,
)
from tests.api.scripted_server import ScriptedServer, accepted, done
from tests.api.serving import gateway, stream_of

pytestmark = pytest.mark.anyio

# "a日b本" in pieces of one byte, two bytes and whole characters; beside each, others alike.
PIECES = [b"a", b"\xe6", b"\x97\xa5", b"b", "本".encode()]
OTHERS = [b"\xe6", b"\xe7", b"\xff", b"a", b"a", b"\x97\xa5"]


def entry(number: int, raw: bytes) -> TokenLogprob:
    text = raw.decode(errors="replace")
    return TokenLogprob(id=number, text=text, bytes=list(raw), logprob=-float(number))


def position(number: int, raw: bytes) -> PositionLogprobs:
    top = [entry(50 + i, other) for i, other in enumerate(OTHERS)]
    return PositionLogprobs(**entry(number, raw).model_dump(), top=top)


async def speak(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """As the engine does: text lags behind tokens until it is whole."""
    yield accepted(request)
    texts = ["a", "", "日", "b", "本"]
    for number, (raw, text) in enumerate(zip(PIECES, texts, strict=True), 1):
        found = [position(number, raw)]
        yield Tokens(id=request.id, ids=[number], text=text, logprobs=found)
    yield done(request)


TOKENS = ["a", "bytes:\\xe6", "bytes:\\x97\\xa5", "b", "本"]
OFFSETS = [0, 1, 1, 2, 3]


async def test_each_token_has_an_entry_and_its_offset() -> None:
    async with gateway(ScriptedServer(speak)) as client:
        body = {"prompt": "a", "logprobs": 6}
        [choice] = (await client.post("/v1/completions", json=body)).json()["choices"]
    found = choice["logprobs"]
    assert (found["tokens"], found["text_offset"]) == (TOKENS, OFFSETS)
    for number, top in enumerate(found["top_logprobs"], 1):
        assert len(top) == len(OTHERS) + 1
        assert sorted(top.values()) == sorted(-float(i) for i in [*range(50, 56), number])
    for text, offset in zip("a日b本", (0, 1, 2, 3), strict=True):
        assert choice["text"][offset] == text


async def test_the_drawn_tokens_own_value_is_its_own() -> None:
    async with gateway(ScriptedServer(speak)) as client:
        body = {"prompt": "a", "logprobs": 6}
        [choice] = (await client.post("/v1/completions", json=body)).json()["choices"]
    found = choice["logprobs"]
    assert found["token_logprobs"] == [-1.0, -2.0, -3.0, -4.0, -5.0]
    for token, value, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert top[token] == value


async def test_a_control_token_takes_no_place_in_the_text() -> None:
    async def interrupted(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        for number, raw in enumerate([b"ab", b"<|im_end|>", b"c"]):
            is_shown = not raw.startswith(b"<|")
            found = PositionLogprobs(**entry(number, raw).model_dump(), is_shown=is_shown)
            text = raw.decode() if is_shown else ""
            yield Tokens(id=request.id, ids=[number], text=text, logprobs=[found])
        yield done(request)

    async with gateway(ScriptedServer(interrupted)) as client:
        body = {"prompt": "a", "logprobs": 0}
        [choice] = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["ab", "<|im_end|>", "c"]
    assert choice["logprobs"]["text_offset"] == [0, 2, 2]


async def test_chunks_say_the_same() -> None:
    async with gateway(ScriptedServer(speak)) as client:
        body = {"prompt": "a", "logprobs": 6, "stream": True}
        chunks = stream_of(await client.post("/v1/completions", json=body))
    parts = [each["choices"][0]["logprobs"] for each in chunks if each["choices"][0]["logprobs"]]
    assert [token for part in parts for token in part["tokens"]] == TOKENS
    assert [offset for part in parts for offset in part["text_offset"]] == OFFSETS
