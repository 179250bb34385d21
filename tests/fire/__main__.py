"""Faults under load: `make torture`. One of two model servers, or the network to it, fails in one
way after the other while clients ask what they know the answers of; the table says what it cost.

Lost, altered and leaked must be 0. Both tiers are real, the model is the tiny twin, and between the
tiers is a network that can be told to fail.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import twin
from tests.benchmarks import report
from tests.e2e.service import Process, wait_until
from tests.fire.load import Counts, Crowd
from tests.fire.proxy import Fault, Proxy
from tests.ports import free_port

DEADLINE_S = 40
CLIENTS = 8
NETWORK: tuple[Fault, ...] = ("refuse", "cut", "reset", "delay", "half_open", "garbage", "flood")
QUIET_S = 20.0  # in which everything must be given back
MORE_FILES = 32


@dataclass
class Site:
    """A gateway, two model servers, and the networks between them."""

    gateway: Process
    url: str
    servers: tuple[Process, Process]
    server_urls: tuple[str, str]
    proxies: tuple[Proxy, Proxy]

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
        for number, url in enumerate(self.server_urls):
            for name in ("num_requests_running", "num_requests_waiting"):
                held[f"server {number} {name}"] = self.metric(url, f"medusa_server_{name}")
        return [f"{name}={value:g}" for name, value in held.items() if value]

    def wait_ready(self) -> None:
        """Until the gateway has both."""

        def both() -> bool:
            states = httpx.get(f"{self.url}/ready", trust_env=False, timeout=30).json()["servers"]
            return all(each["ready"] for each in states)

        wait_until(both, "both model servers")


Inject = Callable[[Site, float], Awaitable[None]]


async def _killed(site: Site, seconds: float) -> None:
    await asyncio.to_thread(site.servers[0].stop, signal.SIGKILL)
    await asyncio.sleep(seconds / 2)
    site.servers[0].start()


async def _stopped(site: Site, seconds: float) -> None:
    process = site.servers[0].popen
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGCONT)


async def _out_of_files(site: Site, seconds: float) -> None:
    """The gateway can't open more than a few connections."""
    pid = site.gateway.popen.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    now = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (now + MORE_FILES, limits[1]))
    await asyncio.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _network(fault: Fault) -> Inject:
    async def inject(site: Site, seconds: float) -> None:
        site.proxies[0].inject(fault)
        await asyncio.sleep(seconds)
        site.proxies[0].inject(None)

    return inject


FAULTS: dict[str, Inject] = {
    "kill -9": _killed,
    "stopped, then continued": _stopped,
    "file descriptors exhausted": _out_of_files,
    **{f"network: {fault.replace('_', ' ')}": _network(fault) for fault in NETWORK},
}


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """Both tiers, ready."""
    model = twin.write(folder / "twin.gguf", file_type="F32")
    ports, proxy_ports, port = [free_port(), free_port()], [free_port(), free_port()], free_port()
    shared = {"model_path": model, "host": "127.0.0.1", "n_threads": 1, "n_parallel": CLIENTS}
    urls = [f"http://127.0.0.1:{each}" for each in proxy_ports]
    async with AsyncExitStack() as stack:
        servers = [
            Process("model_server", folder / f"server-{each}.log", model_server_port=each, **shared)
            for each in ports
        ]
        gateway = Process(
            "api",
            folder / "gateway.log",
            model_server_urls=",".join(urls),
            host="127.0.0.1",
            port=port,
            request_timeout=DEADLINE_S,
        )
        for process in (*servers, gateway):
            stack.callback(process.stop, signal.SIGKILL)
        proxies = [Proxy(each) for each in ports]
        for proxy, each in zip(proxies, proxy_ports, strict=True):
            await proxy.start(each)
            stack.push_async_callback(proxy.aclose)
        made = Site(
            gateway,
            f"http://127.0.0.1:{port}",
            (servers[0], servers[1]),
            (f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"),
            (proxies[0], proxies[1]),
        )
        await asyncio.to_thread(wait_until, lambda: _answers(made.url), "the gateway")
        await asyncio.to_thread(made.wait_ready)
        yield made


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Row:
    """What one fault cost."""

    fault: str
    times: int
    counts: Counts
    resumed: int
    leaked: list[str]

    @property
    def holds(self) -> bool:
        return not (self.counts.lost or self.counts.altered or self.leaked)

    @property
    def cells(self) -> dict[str, str]:
        counts = self.counts
        return {
            "fault": self.fault,
            "times": str(self.times),
            "requests": str(counts.total),
            "exact": str(counts.exact),
            "resumed": str(self.resumed),
            "failed as documented": str(counts.failed),
            "lost": str(counts.lost),
            "altered": str(counts.altered),
            "leaked": ", ".join(self.leaked) or "0",
            "slowest": f"{counts.slowest_s:.1f} s",
        }


async def torture(made: Site, fault: str, times: int, seconds: float, rng: random.Random) -> Row:
    """Inject one fault so many times while clients ask, then wait until all is given back."""
    before = await asyncio.to_thread(lambda: made.resumes)
    crowd = Crowd(made.url, CLIENTS, DEADLINE_S, rng.randrange(2**32))
    asking = asyncio.create_task(crowd.ask())
    for _ in range(times):
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        await FAULTS[fault](made, seconds)
        await asyncio.to_thread(made.wait_ready)
    crowd.stop()
    await asyncio.wait_for(asking, DEADLINE_S + 30)
    resumed = int(await asyncio.to_thread(lambda: made.resumes) - before)
    return Row(fault, times, crowd.counts, resumed, await _leaked(made))


async def _leaked(made: Site) -> list[str]:
    for _ in range(int(QUIET_S / 0.5)):
        leaks = await asyncio.to_thread(made.leaks)
        if not leaks:
            return []
        await asyncio.sleep(0.5)
    return leaks


async def run(times: int, seconds: float, seed: int) -> list[Row]:
    """All faults, one after the other."""
    rng, rows = random.Random(seed), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder)) as made:
            for fault in FAULTS:
                row = await torture(made, fault, times, seconds, rng)
                rows.append(row)
                print(", ".join(f"{name} {said}" for name, said in row.cells.items()), flush=True)
                for example in [] if row.holds else row.counts.examples[:5]:
                    print(f"    {example}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="that each fault is injected")
    parser.add_argument("--seconds", type=float, default=12, help="that it lasts")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"--seed {args.seed}", flush=True)
    # Asked to end, leave through the `with` blocks: they end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = asyncio.run(run(args.times, args.seconds, args.seed))
    how = f"{report.machine()}, {report.now()}. `python -m tests.fire --times {args.times} "
    how += f"--seconds {args.seconds:g} --seed {args.seed}`: {CLIENTS} clients, two model servers."
    report.save("torture", md=f"{how}\n\n{report.markdown([row.cells for row in rows])}")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
