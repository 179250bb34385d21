import json

import pytest

from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/generate", "/generate/"])
async def test_text_counts_timings_and_batch(server: ScriptedServer, path: str) -> None:
    async with gateway(server) as client:
        response = await client.post(path, json={"prompt": "a", "max_tokens": 3})
    answer = response.json()
    timings, batch = answer.pop("timings"), answer.pop("batch")
    assert answer == {
        "text": " 0 1 2",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "model": "scripted",
    }
    assert (timings["queue_ms"], timings["prefill_ms"], timings["decode_ms"]) == (1, 2, 3)
    assert timings["total_ms"] >= timings["batch_wait_ms"] == batch["wait_ms"] >= 5
    assert (batch["id"], batch["size"]) == (response.headers["x-batch-id"], 1)


async def test_a_stream_of_texts_ends_with_the_counts(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        body = {"prompt": "a", "max_tokens": 2, "stream": True}
        response = await client.post("/generate", json=body)
    *lines, last = response.text.strip().split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert last == "data: [DONE]"
    assert events[:2] == [
        {"text": f" {i}", "token_ids": [i], "from_draft": [False]} for i in (0, 1)
    ]
    assert events[2]["text"] == ""
    assert events[2]["completion_tokens"] == 2
