"""What an operator sets: adaptive batches, keys, JSON logs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.admission.keys import new_key
from tests import twin
from tests.e2e.service import Process, Service, serve, wait_until

pytestmark = pytest.mark.anyio

SECRET = twin.prompt_text(twin.prompt(40)[1:])
CHAT = {"role": "user", "content": SECRET}
KEY, LINE = new_key("ann")
SLOTS = 2

NOTICED_WITHIN_S = 1.0  # uvicorn looks ten times a second whether it was told to end


@pytest.fixture(scope="module")
def own(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two slots, adaptive, with a key, logging all there is as JSON."""
    logs = tmp_path_factory.mktemp("logs")
    (logs / "keys.txt").write_text(LINE)
    settings = {
        "n_parallel": SLOTS,
        "adaptive_batching": "true",
        "api_keys_file": logs / "keys.txt",
        "log_format": "json",
        "log_level": "debug",
        "max_wait_time": 0.3,
        "chat_template": "vicuna",
    }
    with serve(twin_path, logs, **settings) as made:
        yield made


def body(num_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": SECRET, "max_tokens": num_tokens, "temperature": 0, **fields}


def client(service: Service) -> httpx.AsyncClient:
    made = service.async_client()
    made.headers["authorization"] = f"Bearer {KEY}"
    return made


async def test_a_lone_request_on_an_idle_server_leaves_at_once(own: Service) -> None:
    waits = []
    async with client(own) as asking:
        for _ in range(10):
            answer = await asking.post("/v1/completions", json=body(1))
            assert answer.headers["x-batch-size"] == "1"
            waits.append(float(answer.headers["x-batch-wait-ms"]))
    assert sorted(waits)[8] < 10


async def test_batches_still_form_while_all_slots_are_taken(own: Service) -> None:
    async with client(own) as asking:
        long = [
            asyncio.create_task(asking.post("/v1/completions", json=body(1_500)))
            for _ in range(SLOTS)
        ]
        await asyncio.to_thread(
            wait_until, lambda: own.counter("num_requests_running") == SLOTS, "both slots taken"
        )
        asks = [asking.post("/v1/completions", json=body(4)) for _ in range(4)]
        answers = await asyncio.gather(*asks)
        await asyncio.gather(*long)
    assert {answer.headers["x-batch-size"] for answer in answers} == {"4"}


async def test_the_key_is_asked_for(own: Service) -> None:
    async with own.async_client() as asking:
        assert (await asking.post("/v1/completions", json=body(1))).status_code == 401
        assert (await asking.get("/ready")).status_code == 200


def test_the_smoke_script_takes_a_key(own: Service) -> None:
    script = Path(__file__).parents[1] / "smoke.sh"
    for key, word in ((KEY, "ok  "), ("sk-wrong", "FAIL")):
        env = {**os.environ, "API_KEY": key}
        command = ["bash", str(script), own.url]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert f"{word}  a completion\n" in done.stdout, done.stdout
        assert f"{word}  the model is listed\n" in done.stdout
        assert f"{word}  a chat\n" in done.stdout


async def test_both_tiers_log_the_request_and_neither_its_text(own: Service) -> None:
    async with client(own) as asking:
        good = await asking.post("/v1/completions", json=body(4))
        await asking.post("/v1/completions", json=body(4, top_p=9))
        await asking.post("/v1/completions", json=body(4, stream=True))
        await asking.post("/v1/completions", json=body(4, grammar=SECRET))
        chat = {"messages": [CHAT], "max_tokens": 4}
        assert (await asking.post("/v1/chat/completions", json=chat)).status_code == 200
        await asking.post("/tokenize", json={"prompt": SECRET})
        await asking.post("/v1/completions", json=body(4_096))
        leaving = asyncio.create_task(asking.post("/v1/completions", json=body(1_500)))
        await asyncio.sleep(0.1)
        leaving.cancel()
    request_id = good.headers["x-request-id"]
    answer = good.json()["choices"][0]["text"]
    for process, named in ((own.gateway, request_id), (own.model_server, f"{request_id}-0")):
        wait_until(lambda: named in process.log, f"{named} in the log", 5)  # noqa: B023
        lines = [json.loads(line) for line in process.log.splitlines()]
        assert any(each.get("request_id") == named for each in lines)
        assert not any(text in process.log for text in (SECRET, SECRET[:20], answer, KEY))
    done = [each for each in lines if each.get("request_id") == f"{request_id}-0"]
    assert done[-1]["completion_tokens"] == 4
    assert done[-1]["decode_ms"] > 0


def num_logged(process: Process, start: str) -> int:
    """Lines of a request whose id begins like that."""
    ids = [json.loads(line).get("request_id") for line in process.log.splitlines()]
    return sum(str(each).startswith(start) for each in ids)


async def test_a_clients_own_id_leads_to_both_tiers(own: Service) -> None:
    async with client(own) as asking:
        for _ in range(2):
            headers = {"x-request-id": "mine-1"}
            await asking.post("/v1/completions", json=body(4), headers=headers)
    for process, start in ((own.gateway, "mine-1"), (own.model_server, "mine-1.")):
        wait_until(lambda: num_logged(process, start) == 2, f"two of {start} in the log", 5)  # noqa: B023


async def test_prompts_are_logged_if_that_is_switched_on(twin_path: Path, tmp_path: Path) -> None:
    settings = {"log_format": "json", "log_prompts": "true", "chat_template": "vicuna"}
    with serve(twin_path, tmp_path, **settings) as service:
        async with service.async_client() as asking:
            await asking.post("/v1/completions", json=body(4, n=2))
            chat = {"messages": [CHAT], "max_tokens": 4}
            assert (await asking.post("/v1/chat/completions", json=chat)).status_code == 200
        lines, below = (
            [json.loads(line) for line in process.log.splitlines()]
            for process in (service.gateway, service.model_server)
        )
    asked = [line for line in lines if "prompt" in line or "messages" in line]
    assert asked[0]["prompt"] == SECRET
    assert asked[1]["messages"] == [CHAT]
    assert len(asked) == 2
    assert all(line["request_id"] for line in asked)
    assert [line["prompt"] for line in below if "prompt" in line] == [SECRET] * 2
    assert [line["messages"] for line in below if "messages" in line] == [[CHAT]]
    text = f'request {asked[1]["request_id"]}-0 asks {{"messages": '
    assert any(line["message"].startswith(text) for line in below)


async def test_a_draining_gateway_finishes_its_streams(twin_path: Path, tmp_path: Path) -> None:
    with serve(twin_path, tmp_path) as service:
        async with service.async_client() as asking:
            fields = body(600, stream=True)
            async with asking.stream("POST", "/v1/completions", json=fields) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                service.gateway.popen.send_signal(signal.SIGTERM)
                give_up = time.monotonic() + NOTICED_WITHIN_S
                while (ready := await asking.get("/ready")).status_code == 200:
                    assert time.monotonic() < give_up
                    await asyncio.sleep(0.01)
                refused = await asking.post("/v1/completions", json=body(1))
                last = [line async for line in lines if line][-1]
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert last == "data: [DONE]"


@pytest.mark.parametrize("tier", ["gateway", "model server"])
async def test_an_idle_connection_stays_open(service: Service, tier: str) -> None:
    """Proxies keep theirs for a minute, and answer 502 when the other side closes before."""
    url = service.url if tier == "gateway" else service.model_url
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for pause_s in (6, 0):  # uvicorn's own limit is 5 s
        writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(pause_s)
    writer.close()


CANARY = "canary in a coal mine"
REFUSED_SHAPES: dict[str, dict[str, Any]] = {
    "grammar": {"grammar": f'root ::= "{CANARY}" nothing'},
    "no grammar": {"grammar": f'root ::= "{CANARY}'},
    "schema": {"json_schema": {"type": "no such type", "description": CANARY}},
    "reference": {"json_schema": {"$ref": f"https://elsewhere.example/{CANARY}"}},
}


@pytest.mark.parametrize("name", REFUSED_SHAPES)
async def test_a_refused_grammar_is_not_logged_but_by_size_and_hash(
    service: Service, name: str
) -> None:
    before = len(service.model_server.log)
    with service.client() as asking:
        answer = asking.post("/generate", json={"prompt": "ba", **REFUSED_SHAPES[name]})
    assert answer.status_code == 400
    wait_until(lambda: "failed: 400" in service.model_server.log[before:], "the refusal's line")
    logged = service.model_server.log[before:]
    assert re.search(r"refused: \d+ bytes, sha256 [0-9a-f]{64}", logged), logged
    assert CANARY not in service.model_server.log
    assert CANARY not in service.gateway.log
