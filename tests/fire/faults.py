"""What can go wrong, each for some seconds: of processes, engines, networks, stores, and limits."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx

from tests import twin, vocabulary
from tests.fire.proxy import Fault
from tests.fire.site import Site, Tier

Inject = Callable[[Site, float], Awaitable[None]]

NETWORK: tuple[Fault, ...] = ("refuse", "cut", "reset", "delay", "half_open", "garbage", "flood")
STORE: dict[str, Fault] = {"silent": "half_open", "slow": "delay", "gone": "cut"}
MORE_FILES = 32
HOUR_S = 3_600
ENDS_WITHIN_S = 90.0
# No other prompt or answer of the crowd has it.
POISON = twin.EMOJI


async def _killed(site: Site, seconds: float) -> None:
    server = site.servers[0]
    await asyncio.to_thread(server.process.stop, signal.SIGKILL)
    await asyncio.sleep(seconds)
    server.revive()


async def _stopped(site: Site, seconds: float) -> None:
    process = site.servers[0].process.popen
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGCONT)


async def _out_of_files(site: Site, seconds: float) -> None:
    """The gateway can't open more than a few connections."""
    now = len(os.listdir(f"/proc/{site.gateway.process.popen.pid}/fd"))
    await _limited([site.gateway], resource.RLIMIT_NOFILE, lambda _: now + MORE_FILES, seconds)


async def _out_of_memory(site: Site, seconds: float) -> None:
    """A model server gets no more than it has."""

    def has(tier: Tier) -> int:
        pages = int(Path(f"/proc/{tier.process.popen.pid}/statm").read_text().split()[0])
        return pages * resource.getpagesize()

    await _limited([site.servers[0]], resource.RLIMIT_AS, has, seconds)


async def _disk_full(site: Site, seconds: float) -> None:
    """No log grows: like a disk that is full, but for these processes alone."""
    tiers = [site.gateway, *site.servers]
    await _limited(tiers, resource.RLIMIT_FSIZE, lambda tier: tier.process.log_bytes, seconds)


async def _limited(
    tiers: list[Tier], what: int, limit: Callable[[Tier], int], seconds: float
) -> None:
    """Who ends by it is started again, without the limit."""
    before = {}
    for tier in tiers:
        pid = tier.process.popen.pid
        before[pid] = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (limit(tier), before[pid][1]))
    await asyncio.sleep(seconds)
    for pid, limits in before.items():
        with suppress(ProcessLookupError):
            resource.prlimit(pid, what, limits)
    for tier in tiers:
        tier.revive()


async def _clock(site: Site, seconds: float) -> None:
    """An hour ahead, then an hour behind, in all processes."""
    tiers = [site.gateway, *site.servers]
    for fault in (f"clock {HOUR_S}", f"clock -{HOUR_S}", ""):
        for tier in tiers:
            tier.inject(fault)
        await asyncio.sleep(seconds / 2 if fault else 0)


async def _poisoned(site: Site, seconds: float) -> None:
    """One request makes every decode fail that it is in; it alone is told so."""
    token = vocabulary.token_ids(twin.TINY.vocab_size)[POISON]
    for server in site.servers:
        server.inject(f"poison {token}")
    body = {"prompt": POISON, "max_tokens": 4, "temperature": 0}
    async with httpx.AsyncClient(base_url=site.url, timeout=60, trust_env=False) as client:
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 500, answer.text
    await asyncio.sleep(seconds / 2)
    for server in site.servers:
        server.inject("")


async def _hung(site: Site, seconds: float) -> None:
    """Until the server's watchdog ends it, and a supervisor starts it again."""
    server = site.servers[0]
    server.inject("hang")
    await asyncio.to_thread(server.process.popen.wait, ENDS_WITHIN_S)
    server.inject("")
    server.revive()


def _engine(fault: str) -> Inject:
    """Where no step can succeed the model server ends, for its supervisor to start it again."""

    async def inject(site: Site, seconds: float) -> None:
        site.servers[0].inject(fault)
        await asyncio.sleep(seconds)
        site.servers[0].inject("")
        site.servers[0].revive()

    return inject


def _network(fault: Fault) -> Inject:
    async def inject(site: Site, seconds: float) -> None:
        site.network.inject(fault)
        await asyncio.sleep(seconds)
        site.network.inject(None)

    return inject


def _store(fault: Fault) -> Inject:
    async def inject(site: Site, seconds: float) -> None:
        assert site.store is not None, "there is a Redis. This is a bug."
        site.store.inject(fault)
        await asyncio.sleep(seconds)
        site.store.inject(None)

    return inject


FAULTS: dict[str, Inject] = {
    "kill -9": _killed,
    "stopped, then continued": _stopped,
    "file descriptors exhausted": _out_of_files,
    "memory exhausted": _out_of_memory,
    "disk full": _disk_full,
    "clock steps": _clock,
    "engine: one decode fails": _engine("fail_once"),
    "engine: every decode fails": _engine("fail"),
    "engine: one request's decodes fail": _poisoned,
    "engine: logits are no numbers": _engine("nan"),
    "engine: ten times slower": _engine("slow"),
    "engine: hangs": _hung,
    **{f"network: {fault.replace('_', ' ')}": _network(fault) for fault in NETWORK},
}
# Where there is a Redis.
STORE_FAULTS = {f"redis: {name}": _store(fault) for name, fault in STORE.items()}
