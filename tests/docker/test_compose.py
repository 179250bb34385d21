"""`docker compose up` with a tiny model: answers, crashes, replicas, an orderly end."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from tests import twin
from tests.benchmarks.faults import ask
from tests.docker.crowd import crowd, is_even, shares
from tests.docker.engine import (
    Project,
    crash,
    docker,
    inspect,
    project,
)

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

NUM_TOKENS = 1_000
SMOKE = Path(__file__).parents[1] / "smoke.sh"


def test_it_answers_as_the_smoke_test_expects(service: Project) -> None:
    done = subprocess.run(["bash", str(SMOKE), service.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_model_the_demo_answers(images: None) -> None:
    question = {"role": "user", "content": "Name the capital of France."}
    body = {"messages": [question], "temperature": 0}
    with project("demo") as own:
        own.up()
        path = f"{own.url}/v1/chat/completions"
        answer = httpx.post(path, json=body, trust_env=False, timeout=120).json()
        heads = httpx.get(own.url, trust_env=False).json()["medusa_heads"]
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert heads > 0


async def test_a_crash_loses_nothing(service: Project) -> None:
    [container] = service.containers("model-server")
    async with crowd(service) as clients:
        for _ in range(3):
            await clients.more(4)
            print(f"healthy {await asyncio.to_thread(crash, container):.1f} s after the crash")
        await clients.more(8)
    assert service.containers("model-server") == [container]


async def test_replicas_share_the_work_and_may_go(service: Project) -> None:
    service.up("--scale", "model-server=3", "--no-recreate")
    await asyncio.to_thread(service.wait_ready, 3)
    containers = service.containers("model-server")
    assert len(containers) == 3
    parts = await shares(service, containers, 180)
    print("answered by each:", parts)
    assert is_even(parts)

    async with crowd(service) as clients:
        await clients.more(8)
        await asyncio.to_thread(crash, containers[2])
        await asyncio.to_thread(service.wait_ready, 3)
        await clients.until_used(containers[2])
        await clients.more(40)
        await asyncio.to_thread(service.up, "--scale", "model-server=2", "--no-recreate")
        await clients.more(16)
    assert len(service.containers("model-server")) == 2


async def test_a_gateway_that_is_stopped_finishes_its_answers(twin_env: dict[str, str]) -> None:
    prompt = twin.prompt(8)
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
    with project("drain", **twin_env) as own:
        own.up()
        [container] = own.containers("gateway")
        async with own.client() as http:
            asked = [asyncio.create_task(ask(http, body, stream=bool(i % 2))) for i in range(8)]
            await asyncio.sleep(0.5)
            stopping = asyncio.create_task(asyncio.to_thread(own.compose, "stop", "gateway"))
            await asyncio.sleep(0)
            assert not any(each.done() for each in asked)
            answers = await asyncio.gather(*asked)
        await stopping
        assert answers == [twin.text(twin.answer(prompt, NUM_TOKENS))] * 8
        assert inspect(container)["State"]["ExitCode"] == 0


def test_a_code_change_builds_no_llama_cpp(images: None, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for name in ("api", "model_server", "requirements", "deployment"):
        subprocess.run(["cp", "-r", str(root / name), str(tmp_path)], check=True)
    for name in ("docker-compose.yml", ".dockerignore"):
        subprocess.run(["cp", str(root / name), str(tmp_path)], check=True)
    for module in ("api/app.py", "model_server/app.py"):
        with (tmp_path / module).open("a") as file:
            file.write(f"\n# changed by process {os.getpid()}\n")
    done = subprocess.run(
        ["docker", "compose", "--project-directory", str(tmp_path), "--progress", "plain", "build"],
        cwd=tmp_path,
        env={
            **os.environ,
            "GATEWAY_IMAGE": "medusa-gateway:changed",
            "MODEL_SERVER_IMAGE": "medusa-model-server:changed",
        },
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "Building wheel" not in log
    assert "Installing collected packages" not in log
    docker("image", "rm", "medusa-gateway:changed", "medusa-model-server:changed")
