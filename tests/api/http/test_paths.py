"""Whichever way a path is written, its endpoint answers, or the refusal names what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.admission.keys import new_key
from api.app import create_app
from api.config import Settings
from api.http.paths import PATHS, plain
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions//", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions/", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/models", "/v1/models"),
        ("/models/owner/name", "/v1/models/owner/name"),
        ("/generate/", "/generate"),
        ("//health", "/health"),
        ("/docs/", "/docs"),
        ("/static/app.js", "/static/app.js"),
        ("/v1", "/v1"),
        ("/completion", "/completion"),
        ("/v2/chat/completions", "/v2/chat/completions"),
    ],
)
def test_the_path_that_is_meant(written: str, meant: str) -> None:
    assert plain(written) == meant


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/chat/completions",
        "/chat/completions/",
        "/v1/v1/chat/completions",
    ],
)
async def test_slashes_too_many_and_no_v1_are_answered(server: ScriptedServer, path: str) -> None:
    async with gateway(server) as client:
        answer = await client.post(f"http://gateway{path}", json=CHAT)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == " 0 1"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/models", "/v1/models/", "/health/", "/ready//"])
async def test_so_are_questions(server: ScriptedServer, path: str) -> None:
    async with gateway(server) as client:
        await client.get("/v1/models")
        assert (await client.get(path)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1", "/v1/chat", "/api/generate", "/v1/moderations", "/x/"])
async def test_a_path_that_is_not_there_is_told_those_that_are(
    server: ScriptedServer, path: str
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json=CHAT)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert error["type"] == "invalid_request_error"
    assert all(path in error["message"] for path in PATHS)


@pytest.mark.anyio
async def test_no_key_is_got_around_by_a_slash(server: ScriptedServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(new_key("me")[1])
    async with gateway(server, api_keys_file=keys) as client:
        for path in ("/v1/models", "//v1/models", "/models", "/models/", "/v1//models"):
            assert (await client.get(f"http://gateway{path}")).status_code == 401, path


def test_every_path_named_is_served() -> None:
    assert set(PATHS) <= set(create_app(Settings()).openapi()["paths"])
