"""The program behind a pipe: plain answers and exit code 0, or one sentence and exit code 1."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.admission.keys import new_key
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, ScriptedServer, accepted, refused, token
from tests.api.serving import gateway_over_sockets
from tests.deployment.chat.test_talk import said
from tests.ports import free_port

pytestmark = pytest.mark.anyio

Outcome = tuple[int | None, str, str]


async def ask(url: object, text: str | bytes, *arguments: str, **environment: str) -> Outcome:
    """Exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deployment.chat", "--url", str(url), *arguments),
        env={**os.environ, "API_KEY": "", "OPENAI_API_KEY": "", **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    asked = text.encode() if isinstance(text, str) else text
    out, err = await asyncio.wait_for(process.communicate(asked), 30)
    return process.returncode, out.decode(), err.decode()


async def test_a_pipe_gets_the_plain_answer(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server) as (client, _):
        url = f"{client.base_url}/v1"  # what OpenAI's clients are told will do
        options = ("--complete", "--max-tokens", "3", "--seed", "7", "--speculation", "off")
        assert await ask(url, "a\nb\n", *options) == (0, " 0 1 2\n", "")
        assert await ask(url, "a", "--system", "s", "--temperature", "0") == (0, " 0 1 2 3 4\n", "")
    completion, chat = server.requests
    assert (completion.prompt, completion.sampling.seed) == ("a\nb", 7)
    assert completion.sampling.temperature == 0.2
    assert (completion.speculation.mode, completion.speculation.show_tree) == ("off", False)
    assert chat.sampling.temperature == 0
    messages = [each.model_dump(exclude_none=True) for each in chat.messages or ()]
    assert messages == [{"role": "system", "content": "s"}, *said("a")]


@pytest.mark.parametrize("text", ["", "\n", " \n"])
async def test_an_empty_pipe_is_a_usage_error(text: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"  # nobody is asked
    said = "The pipe brought nothing to ask: write into it, or start without one.\n"
    assert await ask(url, text) == (2, "", said)


async def test_a_key_is_given_or_asked_for(server: ScriptedServer, tmp_path: Path) -> None:
    key, line = new_key("ann")
    (tmp_path / "keys").write_text(line)
    async with gateway_over_sockets(server, api_keys_file=tmp_path / "keys") as (client, _):
        url = client.base_url
        code, out, err = await ask(url, "a")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "--api-key" in err
        assert (await ask(url, "a", "--api-key", key))[0] == 0
        assert (await ask(url, "a", API_KEY=key))[0] == 0
        assert (await ask(url, "a", OPENAI_API_KEY=key))[0] == 0


async def test_refusals_are_one_sentence(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server, rate_limit_requests=1) as (client, _):
        code, out, err = await ask(client.base_url, "a", "--temperature", "99")
        sentence = "temperature: should be less than or equal to 10, got 99.0.\n"
        assert (code, out, err) == (1, "", sentence)
        code, out, err = await ask(client.base_url, "a")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "RATE_LIMIT_REQUESTS" in err
        assert "(Retry-After: " in err


async def test_no_gateway_is_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    sentence = f"No gateway answers at {url}: start one, or set --url.\n"
    assert await ask(url, "a") == (1, "", sentence)


async def test_an_address_without_a_scheme_is_named() -> None:
    code, _, err = await ask("localhost:8000", "a")
    assert code == 2
    assert "'localhost:8000' is no address like http://127.0.0.1:8000" in err


async def test_a_line_that_can_not_be_is_named() -> None:
    for line, words in (
        (("http://localhost:abc",), "'http://localhost:abc' is no address like"),
        (("http://",), "'http://' is no address like"),
        (
            ("http://localhost", "--api-key", "schl\u00fcssel"),
            "a key is of printable ASCII characters",
        ),
    ):
        code, _, err = await ask(line[0], "a", *line[1:])
        assert code == 2
        assert words in err


async def test_bytes_that_are_no_text_are_asked_as_far_as_they_are(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server) as (client, _):
        code, _, _ = await ask(client.base_url, b"a\xffb", "--complete")
    assert code == 0
    assert server.requests[0].prompt == "a\ufffdb"


async def test_an_answer_that_breaks_off_is_shown_and_one_sentence() -> None:
    async def breaks_off(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield token(request, 0)
        yield refused(request, 500, "engine")

    async with gateway_over_sockets(ScriptedServer(breaks_off)) as (client, _):
        assert await ask(client.base_url, "a") == (1, " 0\n", "engine.\n")


async def test_a_model_server_that_never_returns_is_one_sentence() -> None:
    async def drops(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield DROP

    async with gateway_over_sockets(ScriptedServer(drops), retry_attempts=1) as (client, _):
        code, out, err = await ask(client.base_url, "a")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "was lost" in err
