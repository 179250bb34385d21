"""Server-sent events as they may arrive, and refusals as one sentence."""

import json
from typing import Any

import httpx
import pytest

from deployment.chat.client import Chunk, Client, Refused, events

BYTES = (
    b': ping\r\n\r\ndata: {"a": "\xe2\x80\xa8\xc3\xa9"}\n\n'
    b"event: x\ndata:1\ndata: 2\n\ndata: [DONE]\n\n"
)
DATA = ['{"a": "\u2028\u00e9"}', "1\n2", "[DONE]"]
COMPLETION = {"choices": [{"index": 0, "text": " b", "finish_reason": None}]}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_events_arrive_whole_however_they_are_cut(size: int) -> None:
    cut = [BYTES[at : at + size] for at in range(0, len(BYTES), size)]
    assert list(events(cut)) == DATA


def test_an_event_that_is_not_finished_is_none() -> None:
    assert list(events([b"data: 1\n"])) == []


def client_of(*answers: httpx.Response, key: str = "") -> Client:
    """A client of a server with these answers, one after the other."""
    left = list(answers)
    return Client("http://gateway", key, httpx.MockTransport(lambda _: left.pop(0)))


def stream(*chunks: dict[str, Any]) -> httpx.Response:
    data = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
    return httpx.Response(200, text="".join(f"data: {each}\n\n" for each in data))


def refusal(status: int, code: str, message: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": message, "code": code, "type": "x", "param": None}}
    return httpx.Response(status, json=body, headers=headers)


def test_chunks_of_both_endpoints() -> None:
    chat = {"choices": [{"delta": {"content": " a"}, "token_ids": [1], "from_draft": [True]}]}
    client = client_of(stream({"choices": [{"delta": {"role": "assistant"}}]}, chat, COMPLETION))
    chunks = list(client.ask("/", {}))
    assert chunks == [Chunk(""), Chunk(" a", [True]), Chunk(" b")]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refusal(400, "invalid_value", "n: too\nmany."), "n: too many."),
        (
            refusal(429, "too_many_in_flight", "Full; wait.", **{"retry-after": "1"}),
            "Full; wait (Retry-After: 1 s).",
        ),
        (refusal(401, "invalid_api_key", "No key."), "No key (give it with --api-key or API_KEY)."),
        (httpx.Response(502, text="<html>"), "http://gateway/v1/x answered with status 502."),
        (httpx.Response(500, json=["?"]), "http://gateway/v1/x answered with status 500."),
        (stream({"error": {"message": "Lost."}}), "Lost."),
        (httpx.Response(200, text="data: 1\n\n"), "What answers at http://gateway is not"),
        (httpx.Response(200, text="<html>"), "http://gateway ended the answer early."),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(answer: httpx.Response, sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        list(client_of(answer).ask("/v1/x", {}))
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_the_card_of_the_model() -> None:
    assert client_of(httpx.Response(200, json={"data": [{"id": "m"}]})).model() == {"id": "m"}
    for answer in (httpx.Response(200, json={"data": []}), httpx.Response(200, text="hello")):
        with pytest.raises(Refused, match="is not the gateway"):
            client_of(answer).model()
