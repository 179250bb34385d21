"""Both tiers, and what lies between them: a network, and a Redis behind another, that can fail."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import twin
from tests.api.redis_server import RedisServer
from tests.e2e.service import Process, wait_until
from tests.fire.proxy import Proxy
from tests.ports import free_port

DEADLINE_S = 40
CLIENTS = 8
# Counted, but never reached.
MANY_REQUESTS = 10**9


@dataclass
class Tier:
    """A process of one tier, its address, and the file that says what is wrong with it."""

    process: Process
    url: str
    fault_file: Path

    def inject(self, fault: str) -> None:
        self.fault_file.write_text(fault)

    def revive(self) -> None:
        """What a supervisor does: start it where it has ended."""
        if self.process.popen.poll() is not None:
            self.process.start()


@dataclass
class Site:
    """A gateway, two model servers, and the networks between them. `store`: that to Redis, if there
    is a Redis on this machine.
    """

    gateway: Tier
    servers: tuple[Tier, Tier]
    network: Proxy  # to the first server
    store: Proxy | None

    @property
    def url(self) -> str:
        return self.gateway.url

    def metric(self, url: str, name: str) -> float:
        """The sum over its labels."""
        text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.split()[-1]) for line in lines)

    @property
    def resumes(self) -> float:
        return self.metric(self.url, "medusa_gateway_resumes_total")

    def leaks(self) -> list[str]:
        """What is still held although nobody asks."""
        held = {
            f"gateway {name}": self.metric(self.url, f"medusa_gateway_{name}")
            for name in ("num_requests_running", "num_requests_waiting", "model_server_requests")
        }
        for number, server in enumerate(self.servers):
            for name in ("num_requests_running", "num_requests_waiting"):
                held[f"server {number} {name}"] = self.metric(server.url, f"medusa_server_{name}")
        return [f"{name}={value:g}" for name, value in held.items() if value]

    def wait_ready(self) -> None:
        """Until the gateway has both."""

        def both() -> bool:
            states = httpx.get(f"{self.url}/ready", trust_env=False, timeout=30).json()["servers"]
            return all(each["ready"] for each in states)

        wait_until(both, "both model servers")


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """Both tiers, ready."""
    model = twin.write(folder / "twin.gguf", file_type="F32")
    async with AsyncExitStack() as stack:

        def tier(name: str, number: int, listens: int, **settings: object) -> Tier:
            fault_file = folder / f"{name}-{number}.fault"
            fault_file.write_text("")
            process = Process(
                "tests.fire.sick",
                folder / f"{name}-{number}.log",
                tier=name,
                fault_file=fault_file,
                host="127.0.0.1",
                **settings,
            )
            stack.callback(process.stop, signal.SIGKILL)
            return Tier(process, f"http://127.0.0.1:{listens}", fault_file)

        async def proxy(target: int) -> tuple[Proxy, int]:
            made, port = Proxy(target), free_port()
            await made.start(port)
            stack.push_async_callback(made.aclose)
            return made, port

        servers, ports = [], []
        for number in range(2):
            port = free_port()
            shared = {"model_path": model, "n_threads": 1, "n_parallel": CLIENTS}
            servers.append(tier("model_server", number, port, model_server_port=port, **shared))
            ports.append(port)
        network, network_port = await proxy(ports[0])
        store, limits = None, dict[str, object]()
        if redis := await _redis(stack):
            store, store_port = await proxy(redis)
            limits = {
                "rate_limit_storage": f"redis://127.0.0.1:{store_port}",
                "rate_limit_requests": MANY_REQUESTS,
            }
        port = free_port()
        urls = [f"http://127.0.0.1:{each}" for each in (network_port, ports[1])]
        gateway = tier(
            "api",
            0,
            port,
            port=port,
            model_server_urls=",".join(urls),
            request_timeout=DEADLINE_S,
            **limits,
        )
        made = Site(gateway, (servers[0], servers[1]), network, store)
        await asyncio.to_thread(wait_until, lambda: _answers(made.url), "the gateway")
        await asyncio.to_thread(made.wait_ready)
        yield made


async def _redis(stack: AsyncExitStack) -> int | None:
    """The port of one."""
    program = shutil.which("redis-server")
    if program is None:
        print("no redis-server on the PATH (Debian: apt install redis-server): no faults of stores")
        return None
    server = RedisServer(program)
    await server.start()
    stack.push_async_callback(server.stop)
    return server.port


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
