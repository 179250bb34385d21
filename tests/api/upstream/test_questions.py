"""Questions beside the batches: asked again where that may help, else refused with the reason."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from api.upstream.server import LOST_AFTER_S, PROBE_TIMEOUT_S
from model_server.contract.protocol import Failed, Message
from model_server.contract.questions import Tokenize
from tests.api.fleet import fleet
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway
from tests.api.virtual_time import in_virtual_time

pytestmark = pytest.mark.anyio

BUSY = {"status": "draining"}


async def test_a_question_is_passed_on_and_its_answer_back(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        text = await client.post("/tokenize", json={"prompt": "a", "model": "any"})
        chat = {"messages": [{"role": "user", "content": "hi"}], "add_special_tokens": False}
        await client.post("/tokenize", json=chat)
    assert text.json() == {"count": 2, "max_model_len": 64, "tokens": [1, 7], "token_strs": None}
    hi = Message(role="user", content="hi")
    assert server.questions == [
        Tokenize(prompt="a", parse_special=True),
        Tokenize(messages=[hi], add_special_tokens=False),
    ]


async def test_a_busy_model_server_is_asked_again(server: ScriptedServer) -> None:
    server.refusals = [JSONResponse(BUSY, 503)]
    async with gateway(server) as client:
        answer = await client.post("/tokenize", json={"prompt": "a"})
    assert answer.status_code == 200
    assert len(server.questions) == 2


async def test_one_that_stays_busy_is_503(server: ScriptedServer) -> None:
    server.refusals = [JSONResponse(BUSY, 503) for _ in range(3)]
    async with gateway(server) as client:
        answer = await client.post("/tokenize", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_server_busy")


async def test_a_refusal_keeps_its_status_and_its_words(server: ScriptedServer) -> None:
    failed = Failed(id="", status=400, code="invalid_prompt", message="no.", param="messages")
    server.refusals = [JSONResponse(failed.model_dump(), 400)]
    async with gateway(server) as client:
        answer = await client.post("/tokenize", json={"prompt": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "no.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "invalid_prompt",
    }


@pytest.mark.parametrize("odd", [PlainTextResponse("what?", 404), JSONResponse({"x": 1}, 422)])
async def test_an_answer_outside_the_contract_is_502(server: ScriptedServer, odd: Response) -> None:
    server.refusals = [odd, odd]
    async with gateway(server) as client:
        answer = await client.post("/tokenize", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "model_server_fault")


@in_virtual_time
async def test_one_of_two_that_fails_costs_nobody_an_answer() -> None:
    sick, well = ScriptedServer(), ScriptedServer()
    sick.refusals = [Response(status_code=500) for _ in range(10)]
    async with fleet(sick, well) as made:
        asked = [await made.client.post("/tokenize", json={"prompt": "a"}) for _ in range(10)]
    assert {each.status_code for each in asked} == {200}


@in_virtual_time
async def test_one_that_falls_silent_is_not_waited_for() -> None:
    """Neither by who had asked before, nor longer than until it is known to be away."""
    servers = [ScriptedServer(), ScriptedServer()]
    async with fleet(*servers) as made:
        made.machines[0].awake.clear()
        fell_silent = time.monotonic()
        asked = []
        for _ in range(10):
            asking = made.client.post("/tokenize", json={"prompt": "a"}, timeout=None)
            asked.append(asyncio.create_task(asking))
            await asyncio.sleep(1)
        assert {(await each).status_code for each in asked} == {200}
        assert time.monotonic() - fell_silent < LOST_AFTER_S + PROBE_TIMEOUT_S
    assert all(len(each.questions) >= 5 for each in servers), "it was asked first"


async def test_without_a_model_server_it_is_503(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server, ready_wait_s=0.05) as client:
        answer = await client.post("/tokenize", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_model_server")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "messages"),
        ("/tokenize", {"prompt": "a" * 513}, "prompt"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "tokens": [1]}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [100]}, "tokens"),
        ("/detokenize", {"tokens": [1] * (64 * 8 + 1)}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_bad_questions_are_refused_at_the_door(
    server: ScriptedServer, path: str, body: dict[str, object], param: str
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert server.questions == []
