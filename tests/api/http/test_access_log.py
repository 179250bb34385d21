import logging
import time

import pytest

from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio


async def test_every_answer_is_named(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        answers = [await client.get(path) for path in ("/health", "/nowhere", "/health")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


async def test_a_valid_name_of_the_clients_own_is_kept(server: ScriptedServer) -> None:
    body, headers = {"prompt": "a", "max_tokens": 1}, {"x-request-id": "me-1"}
    async with gateway(server) as client:
        answers = [await client.post("/v1/completions", json=body, headers=headers) for _ in "ab"]
    assert [answer.headers["x-request-id"] for answer in answers] == ["me-1", "me-1"]
    ids = {request.id for request in server.requests}
    assert len(ids) == 2, "the model server would take the second for another attempt at the first"
    assert all(name.startswith("me-1.") for name in ids)


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "a" * 65])
async def test_a_name_that_is_not_valid_is_replaced(server: ScriptedServer, name: str) -> None:
    async with gateway(server) as client:
        headers = {b"x-request-id": name.encode()}
        answer = await client.get("/health", headers=headers)
    assert len(answer.headers["x-request-id"]) == 32


async def test_answers_say_how_long_they_took(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.5, adaptive_batching=False) as client:
        for send, least_ms in (
            (client.post("/generate", json={"prompt": "a"}), 500),
            (client.get("/health"), 0),
        ):
            began = time.monotonic()
            answer = await send
            took_ms = 1_000 * (time.monotonic() - began)
            assert least_ms <= int(answer.headers["openai-processing-ms"]) <= took_ms + 1


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/page/markdown"])
async def test_what_an_open_page_or_a_probe_asks_is_no_news(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG, "api.request")
    async with gateway(server) as client:
        await client.get("/v1/models")
        await client.get(path)
    levels = [each.levelname for each in caplog.records if each.name == "api.request"]
    assert levels == ["INFO", "DEBUG"]


async def test_a_bug_is_500_in_openais_shape(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("api.gateway.Gateway.answering", broken)
    async with gateway(server) as client:
        answer = await client.post("/generate", json={"prompt": "a"})
    assert answer.status_code == 500
    assert "This is a bug" in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
