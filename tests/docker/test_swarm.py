"""A stack on a swarm of one machine: replicas, crashes, and updates that nobody notices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from tests.docker.crowd import crowd, is_even, shares
from tests.docker.engine import START_TIMEOUT_S, Stack, docker, kill_server
from tests.e2e.service import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

# On one machine: the mesh needs a kernel with ip_vs, and a published port belongs to one gateway.
ONE_MACHINE = {
    "PUBLISH_MODE": "host",
    "GATEWAY_REPLICAS": "1",
    "GATEWAY_UPDATE_ORDER": "stop-first",
    "MODEL_SERVER_REPLICAS": "3",
}


@pytest.fixture(scope="module")
def stack(twin_env: dict[str, str]) -> Iterator[Stack]:
    if docker("info", "--format", "{{.Swarm.LocalNodeState}}").strip() != "inactive":
        pytest.skip("this machine is in a swarm already")
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    made = Stack(f"medusa-test-{os.getpid()}", {**twin_env, **ONE_MACHINE})
    try:
        made.deploy()
        made.wait_ready(3)
        yield made
    finally:
        docker("stack", "rm", made.name)
        label = f"label=com.docker.stack.namespace={made.name}"
        networks = ("network", "ls", "--quiet", "--filter", label)
        wait_until(lambda: not docker(*networks), "its networks to go", START_TIMEOUT_S)
        docker("swarm", "leave", "--force")


async def test_replicas_share_the_work(stack: Stack) -> None:
    parts = await shares(stack, stack.containers("model-server"), 180)
    print("answered by each:", parts)
    assert is_even(parts)


async def test_a_killed_replica_is_replaced_and_used(stack: Stack) -> None:
    before = set(stack.containers("model-server"))
    async with crowd(stack) as clients:
        await clients.more(8)
        await asyncio.to_thread(kill_server, min(before))
        await asyncio.to_thread(_replaced, stack, before, 1)
        await asyncio.to_thread(stack.wait_ready, 3)
        [new] = set(stack.containers("model-server")) - before
        await clients.until_used(new)
        await clients.more(40)


async def test_a_replica_may_go_while_it_serves(stack: Stack) -> None:
    async with crowd(stack) as clients:
        await clients.more(8)
        await asyncio.to_thread(stack.update, "model-server", "--replicas", "2")
        await asyncio.to_thread(stack.wait_ready, 2)
        await clients.more(16)
        await asyncio.to_thread(stack.update, "model-server", "--replicas", "3")
        await asyncio.to_thread(stack.wait_ready, 3)
        await clients.more(8)


async def test_a_rolling_update_loses_nothing(stack: Stack) -> None:
    before = set(stack.containers("model-server"))
    quickly = ("--update-delay", "1s", "--update-monitor", "5s")
    async with crowd(stack) as clients:
        await clients.more(8)
        change = ("--env-add", "LOG_FORMAT=json")
        await asyncio.to_thread(stack.update, "model-server", *quickly, *change)
        await asyncio.to_thread(_replaced, stack, before, 3)
        await clients.more(16)


def _replaced(stack: Stack, before: set[str], num_new: int) -> None:
    """Wait until so many containers are new."""

    def are() -> bool:
        return len(set(stack.containers("model-server")) - before) >= num_new

    wait_until(are, f"{num_new} new replicas", START_TIMEOUT_S)
