from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from model_server.app import AppState, create_app
from model_server.contract.protocol import Info
from model_server.engine.intake import Intake
from model_server.engine.prompt import PromptEncoder
from model_server.engine.startup import Served
from tests import twin

pytestmark = pytest.mark.anyio

PROMPT = twin.prompt(12)


@pytest.fixture
def server(served: Served) -> AppState:
    return AppState(served=served, loaded=1.0)


@pytest.fixture
async def client(server: AppState) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(server))
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as opened:
        yield opened


def request(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "prompt_tokens": PROMPT, "max_tokens": 5, "sampling": {"temperature": 0},
            **fields}  # fmt: skip


def batch(*requests: dict[str, Any]) -> dict[str, Any]:
    return {"id": "b", "requests": list(requests)}


def events(answer: httpx.Response) -> dict[str, list[dict[str, Any]]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    heard: dict[str, list[dict[str, Any]]] = {}
    for line in filter(None, answer.text.splitlines()):
        event = json.loads(line)
        heard.setdefault(event["id"], []).append(event)
    return heard


async def begun(served: Served) -> None:
    """Until the engine has something to do."""
    for _ in range(5_000):
        if served.engine.num_unfinished:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("no request came to the engine")


async def settled(served: Served) -> bool:
    """Whether the engine has nothing left to do, soon."""
    for _ in range(500):
        if not served.engine.num_unfinished:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_batch_is_answered_by_events_of_each_request(
    client: httpx.AsyncClient, server: AppState
) -> None:
    answer = await client.post("/batch", json=batch(request("a"), request("b", max_tokens=9)))
    heard = events(answer)
    for name, count in (("a", 5), ("b", 9)):
        kinds = [event["event"] for event in heard[name]]
        assert kinds == ["accepted", "started", *["token"] * count, "done"]
        ids = [token for event in heard[name][2:-1] for token in event["ids"]]
        assert ids == twin.answer(PROMPT, count)
    assert server.streams == {}


async def test_a_batch_shows_that_somebody_is_there(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_server.app.HEARTBEAT_S", 1e-4)
    answer = await client.post("/batch", json=batch(request("a")))
    assert "" in answer.text.split("\n")[:-1]
    assert [event["event"] for event in events(answer)["a"]][-1] == "done"


async def test_one_bad_request_does_not_touch_the_others(client: httpx.AsyncClient) -> None:
    bad = {
        "grammar": request("grammar", sampling={"grammar": "root ::= " + "(" * 1_000}),
        "schema": request("schema", sampling={"json_schema": {"$ref": "https://127.0.0.1:9"}}),
        "empty": request("empty", prompt_tokens=[]),
        "token": request("token", prompt_tokens=[10**9]),
        "long": request("long", prompt_tokens=twin.prompt(256)),
        "chat": request("chat", prompt_tokens=None, messages=[{"role": "user", "content": "a"}]),
    }
    heard = events(await client.post("/batch", json=batch(*bad.values(), request("good"))))
    for name in bad:
        assert [event["event"] for event in heard[name]] == ["error"]
        assert heard[name][0]["status"] == 400
    assert heard["good"][-1]["event"] == "done"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"id": "b", "requests": []}',
        b'{"id": "b", "requests": [{"id": "a"}]}',
        b'{"id": "b", "requests": [{"id": "a", "prompt": "\\ud800"}]}',
        b'{"id": "b", "requests": [{"id": "a", "prompt": "x", "sampling": {"temperature": NaN}}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
async def test_malformed_bodies_are_refused(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/batch", content=body, headers=headers)
    assert 400 <= answer.status_code < 500


async def test_a_request_that_cannot_be_prepared_fails_alone(
    client: httpx.AsyncClient, server: AppState, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Intake.make

    def broken(self: Intake, of: Any) -> Any:
        return make(self, of) if of.id == "good" else 1 // 0

    monkeypatch.setattr(Intake, "make", broken)
    heard = events(await client.post("/batch", json=batch(request("bad"), request("good"))))
    assert (heard["bad"][0]["event"], heard["bad"][0]["status"]) == ("error", 500)
    assert heard["good"][-1]["event"] == "done"
    assert server.streams == {}


async def test_prompts_and_grammars_are_prepared_on_two_threads(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them would take the interpreter and the cores from the steps."""
    make, tokenize = Intake.make, PromptEncoder.tokenize
    threads: set[str] = set()

    def seen(self: Intake, of: Any) -> Any:
        threads.add(threading.current_thread().name)
        time.sleep(0.01)
        return make(self, of)

    def seen_too(self: PromptEncoder, asked: Any) -> Any:
        threads.add(threading.current_thread().name)
        time.sleep(0.01)
        return tokenize(self, asked)

    monkeypatch.setattr(Intake, "make", seen)
    monkeypatch.setattr(PromptEncoder, "tokenize", seen_too)
    shaped = {"temperature": 0, "choices": ["a"]}
    requests = [request(f"{i}", **({"sampling": shaped} if i % 2 else {})) for i in range(40)]
    posted = client.post("/batch", json=batch(*requests))
    asked = [client.post("/tokenize", json={"prompt": "a"}) for _ in range(20)]
    answers = await asyncio.gather(posted, *asked)
    assert {answer.status_code for answer in answers} == {200}
    assert len(threads) == 2


async def test_deleting_ends_one_request_of_a_batch(
    client: httpx.AsyncClient, served: Served
) -> None:
    long, short = request("long", max_tokens=200, ignore_eos=True), request("short")
    posted = asyncio.create_task(client.post("/batch", json=batch(long, short)))
    await begun(served)
    assert (await client.delete("/requests/long")).status_code == 204
    heard = events(await posted)
    assert heard["short"][-1]["event"] == "done"
    assert [event for event in heard.get("long", []) if event["event"] == "done"] == []
    assert await settled(served)


async def test_deleting_an_unknown_request_is_harmless(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/requests/nobody")).status_code == 204


async def test_a_later_attempt_takes_the_id_over(client: httpx.AsyncClient, served: Served) -> None:
    first = request("a", max_tokens=200, ignore_eos=True)
    posted = asyncio.create_task(client.post("/batch", json=batch(first)))
    await begun(served)
    second = events(await client.post("/batch", json=batch(request("a", attempt=2))))
    assert second["a"][0]["attempt"] == 2
    assert second["a"][-1]["event"] == "done"
    heard = events(await posted)
    assert [event for event in heard.get("a", []) if event["event"] == "done"] == []
    assert await settled(served)


@pytest.mark.parametrize("after_events", [0, 1, 5])
async def test_a_client_that_goes_away_cancels_its_batch(
    server: AppState, served: Served, after_events: int
) -> None:
    """The raw interface, as the HTTP server speaks it: a body, then a disconnect."""
    body = json.dumps(batch(request("a", max_tokens=200, ignore_eos=True), request("b"))).encode()
    gone = asyncio.Event()
    num_sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal body
        if body:
            sent, body = body, b""
            return {"type": "http.request", "body": sent, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal num_sent
        num_sent += message["type"] == "http.response.body"
        if num_sent >= after_events:
            gone.set()

    scope = {
        "type": "http", "method": "POST", "path": "/batch", "raw_path": b"/batch",
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("model", 80),
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
    }  # fmt: skip
    await asyncio.wait_for(create_app(server)(scope, receive, send), 20)
    assert server.streams == {}
    assert await settled(served)


async def test_what_the_server_is_and_can(client: httpx.AsyncClient, served: Served) -> None:
    assert Info.model_validate((await client.get("/info")).json()) == served.info
    assert (await client.get("/health")).json() == {"status": "ok"}
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_metrics_count_batches(client: httpx.AsyncClient) -> None:
    await client.post("/batch", json=batch(request("a"), request("b")))
    text = (await client.get("/metrics")).text
    assert "medusa_server_batches_total 1.0" in text
    assert "medusa_server_batch_requests_total 2.0" in text


@pytest.mark.parametrize(("draining", "status"), [(False, "loading"), (True, "draining")])
async def test_while_it_cannot_serve_it_says_so_and_lives(draining: bool, status: str) -> None:
    transport = httpx.ASGITransport(create_app(AppState(draining=draining, loaded=0.5)))
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        refused = await client.post("/batch", json=batch(request("a")))
        assert (refused.status_code, refused.json()["status"]) == (503, status)
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/info")).status_code == 503
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": status, "loaded": 0.5})
        assert (await client.get("/health")).status_code == 200


async def test_too_many_waiting_requests_are_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_server.app._MAX_UNFINISHED", 1)
    refused = await client.post("/batch", json=batch(request("a"), request("b")))
    assert refused.status_code == 503
    assert (await client.post("/batch", json=batch(request("a")))).status_code == 200


async def test_tokens_of_a_text_and_back(client: httpx.AsyncClient) -> None:
    text = twin.prompt_text(PROMPT)
    there = await client.post("/tokenize", json={"prompt": text})
    assert there.json()["tokens"] == PROMPT
    back = await client.post("/detokenize", json={"tokens": PROMPT})
    assert back.json() == {"prompt": text}


async def test_what_has_no_tokens_is_refused_as_requests_are(client: httpx.AsyncClient) -> None:
    message = {"role": "user", "content": "hi"}
    answer = await client.post("/tokenize", json={"messages": [message]})
    assert answer.status_code == 400
    assert (answer.json()["code"], answer.json()["param"]) == ("invalid_prompt", "messages")
    both = await client.post("/tokenize", json={"prompt": "a", "messages": [message]})
    assert both.status_code == 422


async def test_a_bug_says_that_it_ends_the_connection(server: AppState) -> None:
    app = create_app(server)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("a bug")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as opened:
        answer = await opened.get("/bug")
    assert (answer.status_code, answer.headers["connection"]) == (500, "close")
