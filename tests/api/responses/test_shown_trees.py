"""Draft trees as clients see them: on request, in streams only, one a step."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from model_server.contract.protocol import Event, GenerateRequest, ShownTree, Speculation
from tests.api.scripted_server import ScriptedServer, accepted, done, token
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/generate": {"prompt": "a"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
}
SHOWN = {"speculation": {"show_tree": True}}


def tree(step: int) -> ShownTree:
    return ShownTree(
        token_ids=[9, step],
        texts=["a", "b"],
        parents=[-1, 0],
        probabilities=[1, 0.5],
        accepted=[1] * (step % 2),
    )


async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """Three steps; the text of the second is held back."""
    yield accepted(request)
    for step, text in enumerate(("x", "", "y")):
        yield token(request, step).model_copy(update={"text": text, "tree": tree(step)})
    yield done(request)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_shows_the_tree_of_every_step(path: str) -> None:
    server = ScriptedServer(script)
    async with gateway(server) as client:
        answer = await client.post(path, json={**BODIES[path], "stream": True, **SHOWN})
    assert [request.speculation for request in server.requests] == [Speculation(show_tree=True)]
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    chunks = map(json.loads, lines)
    choices = [each for chunk in chunks for each in chunk.get("choices", [chunk])]
    shown = [choice["draft_trees"] for choice in choices if "draft_trees" in choice]
    expected = [tree(step).model_dump() for step in range(3)]
    assert shown == [expected[:1], expected[1:]]
    assert [choice["token_ids"] for choice in choices if "token_ids" in choice] == [[0], [1, 2]]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (SHOWN, "speculation.show_tree needs stream to be true."),
        (
            {"stream": True, "speculation": {"show_tree": "yes"}},
            "speculation.show_tree: should be a valid boolean, got 'yes'.",
        ),
    ],
)
async def test_what_cannot_be_shown_is_refused(
    path: str, fields: dict[str, Any], says: str, server: ScriptedServer
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json={**BODIES[path], **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (400, says)
    assert error["param"] == "speculation.show_tree"
    assert server.batches == []
