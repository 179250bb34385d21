"""Is the simulation right? The same load on 1, 2 and 3 real model servers behind a real gateway.

`python -m tests.benchmarks.capacity.check`. The machine's few cores can't carry three models, so
the servers' decodes are made to take a given time, mostly asleep; all else is real. The exit code
is 1 where TTFT p95 or the throughput is further than 15 % from what was simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

from model_server.engine.cost import CostCurve, Costs
from model_server.engine.scheduler import Limits
from tests import twin
from tests.benchmarks import report
from tests.benchmarks.arguments import count, positive
from tests.benchmarks.capacity.simulation import Machine, Traffic, simulate
from tests.benchmarks.servers import end_in_order
from tests.e2e.service import Process, wait_until
from tests.fire.sick import PACE_S
from tests.ports import free_port

SLOTS, CELLS, MAX_ROWS, MAX_STEP_MS = 8, 8_192, 512, 200.0
WITHIN = 0.15
PROMPT, ANSWER = 48, 32
TIMEOUT_S = 600.0


def machine(overhead_s: float) -> Machine:
    """What the real servers are told to be."""
    decode_s, row_s = PACE_S
    curve = CostCurve({rows: decode_s + row_s * rows for rows in (1, MAX_ROWS)})
    limits = Limits(SLOTS, MAX_ROWS, MAX_STEP_MS / 1_000)
    return Machine(Costs(curve, curve), limits, CELLS, overhead_s)


class Servers:
    """So many paced model servers and a gateway, on this machine."""

    def __init__(self, number: int, folder: Path, stack: ExitStack) -> None:
        model = twin.write(folder / f"twin-{number}.gguf", file_type="F32")
        pace = folder / f"pace-{number}"
        pace.write_text("pace")
        ports = [free_port() for _ in range(number)]
        self.server_urls = [f"http://127.0.0.1:{port}" for port in ports]
        for port in ports:
            stack.enter_context(
                _stopped(
                    Process(
                        "tests.fire.sick",
                        folder / f"server-{port}.log",
                        tier="model_server",
                        fault_file=pace,
                        host="127.0.0.1",
                        model_path=model,
                        model_server_port=port,
                        n_threads=1,
                        n_parallel=SLOTS,
                        kv_cache_tokens=CELLS,
                        max_step_ms=MAX_STEP_MS,
                        medusa_mode="off",
                        # The costs of another start were kept of decodes that nobody paced.
                        xdg_cache_home=folder / "cache",
                    )
                )
            )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        gateway = Process(
            "api",
            folder / f"gateway-{port}.log",
            host="127.0.0.1",
            port=port,
            model_server_urls=",".join(self.server_urls),
        )
        stack.enter_context(_stopped(gateway))
        wait_until(self._all_ready, "all model servers")

    def _all_ready(self) -> bool:
        try:
            states = httpx.get(f"{self.url}/ready", trust_env=False).json()["servers"]
        except httpx.TransportError:
            return False
        return all(state["ready"] for state in states)

    def overhead_s(self) -> float:
        """What a step takes beside its decode, in the mean over servers."""
        found = []
        for url in self.server_urls:
            lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if line[:1] != "#")
            name = "medusa_server_step_seconds"
            step_s = float(values[f"{name}_sum"]) / float(values[f"{name}_count"])
            found.append(step_s * float(values["medusa_server_step_python_share"]))
        return float(np.mean(found))


def _stopped(process: Process) -> ExitStack:
    stack = ExitStack()
    stack.callback(process.stop)
    return stack


async def measure(url: str, traffic: Traffic) -> tuple[float, float]:
    """TTFT p95 in seconds and tokens a second, of the same arrivals."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        started = time.perf_counter()
        asked = []
        for number, (arrival, _) in enumerate(traffic.arrivals()):
            await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
            asked.append(asyncio.create_task(_ttft_s(client, number, traffic)))
            if number == 0:
                first = time.perf_counter()
        times = await asyncio.gather(*asked)
        span_s = time.perf_counter() - first
    tokens = traffic.num_requests * traffic.answer_tokens
    return float(np.quantile(times, 0.95)), tokens / span_s


async def _ttft_s(client: httpx.AsyncClient, number: int, traffic: Traffic) -> float:
    prompt = twin.prompt(traffic.prompt_tokens, seed=number)
    body = {
        "prompt": twin.prompt_text(prompt),
        "max_tokens": traffic.answer_tokens,
        "temperature": 0,
        "stream": True,
    }
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        parts = answer.aiter_raw()
        await anext(parts)
        took_s = time.perf_counter() - started
        async for _ in parts:
            pass
    return took_s


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.capacity.check", description=__doc__
    )
    parser.add_argument("--servers", type=count, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rate", type=positive, default=1.4, help="requests a second and server")
    parser.add_argument("--seconds", type=positive, default=180, help="of arrivals")
    args = parser.parse_args()
    rows, holds = [], True
    for number in args.servers:
        rate = args.rate * number
        traffic = Traffic(rate, int(rate * args.seconds), PROMPT, ANSWER, seed=number)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            servers = Servers(number, Path(folder), stack)
            ttft_s, tokens_per_s = asyncio.run(measure(servers.url, traffic))
            overhead_s = servers.overhead_s()
        told = simulate(machine(overhead_s), number, traffic)
        ratios = told.ttft_s(0.95) / ttft_s, told.tokens_per_s / tokens_per_s
        holds &= all(abs(ratio - 1) <= WITHIN for ratio in ratios)
        rows.append(
            {
                "servers": str(number),
                "requests/s": f"{rate:g}",
                "TTFT p95, s, measured": f"{ttft_s:.3f}",
                "simulated": f"{told.ttft_s(0.95):.3f}",
                "ratio": f"{ratios[0]:.3f}",
                "tokens/s, measured": f"{tokens_per_s:.1f}",
                "simulated ": f"{told.tokens_per_s:.1f}",
                "ratio ": f"{ratios[1]:.3f}",
                "busy": f"{told.utilisation:.0%}",
            }
        )
        print(rows[-1], flush=True)
    how = (
        f"{report.machine()}, {report.now()}; decodes of {PACE_S[0]:g} s and {PACE_S[1]:g} s a row."
    )
    report.save("capacity-check", md=f"{how}\n\n{report.markdown(rows)}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
