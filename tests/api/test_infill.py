"""/infill as llama-server's clients know it, and suffix: what the model server is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

# As llama.vim sends it.
EDITORS: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "def f():\n",
    "input_suffix": "\n    return x\n",
    "input_extra": [{"text": "x = 1", "time": [1, 2], "filename": "a.py"}],
    "prompt": "    ",
    "n_predict": 3,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1_000,
    "response_fields": ["content", "timings/prompt_n", "truncated", "tokens_cached"],
}


async def test_an_editors_request(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        response = await client.post("/infill", json=EDITORS)
    answer = response.json()
    timings = answer.pop("timings")
    assert answer == {
        "index": 0,
        "content": " 0 1 2",
        "tokens": [],
        "stop": True,
        "model": "scripted",
        "stop_type": "limit",
        "stopping_word": "",
        "tokens_predicted": 3,
        "tokens_evaluated": 3,
        "tokens_cached": 5,
        "truncated": False,
    }
    assert timings == {
        "cache_n": 0,
        "prompt_n": 3,
        "prompt_ms": 2,
        "predicted_n": 3,
        "predicted_ms": 3,
    }
    [request] = server.requests
    assert request.prompt == "def f():\n    "
    assert request.infill is not None
    assert request.infill.model_dump() == {
        "suffix": "\n    return x\n",
        "extra": [{"text": "x = 1", "filename": "a.py"}],
        "trims": True,
    }
    assert (request.max_tokens, request.sampling.top_k) == (3, 40)


async def test_a_stream_ends_with_stop(server: ScriptedServer) -> None:
    """Not with [DONE], which who reads each line as JSON would stumble over."""
    async with gateway(server) as client:
        response = await client.post("/infill", json={**EDITORS, "stream": True})
    lines = [line for line in response.text.split("\n\n") if line]
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines]
    ours = {"from_draft": [False]}  # as in every stream
    assert chunks == [
        {"index": 0, "content": f" {i}", "tokens": [i], "stop": False, "token_ids": [i], **ours}
        for i in range(3)
    ]
    assert (last["content"], last["stop"], last["tokens_predicted"]) == ("", True, 3)


async def test_all_of_it_may_be_left_away(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        assert (await client.post("/infill", json={})).status_code == 200
    [request] = server.requests
    assert (request.prompt, request.max_tokens) == ("", None)


@pytest.mark.parametrize(("given", "max_tokens"), [(0, 1), (0.0, 1), (1, 1), (-1, None)])
async def test_no_tokens_are_one(server: ScriptedServer, given: float, max_tokens: int) -> None:
    """As with llama-server: an editor that asks for none has the prompt read ahead of time."""
    async with gateway(server) as client:
        answer = await client.post("/infill", json={"n_predict": given})
    assert answer.status_code == 200
    assert server.requests[0].max_tokens == max_tokens


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input_extra": "a"}, "input_extra"),
        ({"input_extra": [5]}, "input_extra[0]"),
        ({"input_extra": [{"text": 5}]}, "input_extra[0].text"),
        ({"input_prefix": 5}, "input_prefix"),
        ({"n_predict": -2}, "max_tokens"),
        ({"n_predict": False}, "max_tokens"),
        ({"lora": [1]}, "lora"),
        ({"input_sufix": "a"}, "input_sufix"),
    ],
)
async def test_what_is_refused(server: ScriptedServer, given: dict[str, Any], param: str) -> None:
    async with gateway(server) as client:
        response = await client.post("/infill", json=given)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_suffix_goes_with_each_prompt(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        body = {"prompt": ["a", ""], "suffix": "c", "max_tokens": 2}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert [each["text"] for each in answer["choices"]] == [" 0 1", " 0 1"]
    asked = [(each.prompt, each.infill and each.infill.suffix) for each in server.requests]
    assert asked == [("a", "c"), ("", "c")]
