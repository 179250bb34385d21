"""The model server is killed again and again, and nobody notices: `make prove-faults`.

Clients ask for known answers, streamed and whole, greedy and seeded, half of them waiting for a
slot, while `kill -9` hits the model server at random moments and a supervisor starts it anew. An
answer that fails, ends early or is not the known one to the last character is a failure. Who was
told at the door to ask again later, since a restart took longer than requests are made to wait,
asks again and is counted apart. Both tiers are real; the model is the tiny twin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import twin
from tests.benchmarks import report
from tests.benchmarks.arguments import count
from tests.benchmarks.servers import end_in_order
from tests.e2e.service import Service, serve, stream_text

KILLS, REQUESTS, CLIENTS = 20, 500, 16
NUM_TOKENS, NUM_SEEDS = 300, 8
UP_S = (0.1, 2.0)  # how long the model server may run before it is killed again

Body = dict[str, Any]


@dataclass
class Outcome:
    """What became of a run."""

    kills: int = 0
    answers: int = 0
    turned_away: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def greedy(seed: int) -> tuple[Body, str]:
    """A question and its known answer."""
    prompt = twin.prompt(8, seed)
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
    return body, twin.text(twin.answer(prompt, NUM_TOKENS))


async def seeded(client: httpx.AsyncClient, seed: int) -> tuple[Body, str]:
    """A sampled question, and what it is answered while nothing happens."""
    prompt = twin.prompt(8, 1_000 + seed)
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 1.5, "seed": seed}
    answer = await client.post("/v1/completions", json=body)
    return body, str(answer.raise_for_status().json()["choices"][0]["text"])


async def ask(client: httpx.AsyncClient, body: Body, *, stream: bool) -> str | None:
    """The text of an answer, None for `ask again later`; AssertionError or httpx.HTTPError if it
    is no whole one.
    """
    request = client.build_request("POST", "/v1/completions", json={**body, "stream": stream})
    answer = await client.send(request, stream=True)
    async with aclosing(answer):
        if answer.status_code == 503 and "retry-after" in answer.headers:
            return None
        assert answer.status_code == 200, await answer.aread()
        if not stream:
            return str(json.loads(await answer.aread())["choices"][0]["text"])
        lines = [line async for line in answer.aiter_lines()]
    assert not any('"error"' in line for line in lines), lines[-3:]
    return stream_text(iter(lines))


class Trial:
    """One service under clients, until it was killed and has answered often enough."""

    def __init__(self, service: Service, kills: int, requests: int, seed: int) -> None:
        self.outcome = Outcome()
        self._service = service
        self._kills, self._requests = kills, requests
        self._rng = random.Random(seed)

    async def run(self, clients: int = CLIENTS) -> Outcome:
        async with self._service.async_client(timeout_s=600) as client:
            known = [greedy(seed) for seed in range(NUM_SEEDS)]
            known += await asyncio.gather(*(seeded(client, seed) for seed in range(NUM_SEEDS)))
            assert len({text for _, text in known}) == len(known), "the answers tell nothing apart"
            killing = asyncio.create_task(self._kill())
            await asyncio.gather(*(self._client(client, known) for _ in range(clients)))
            await killing
        return self.outcome

    async def _client(self, client: httpx.AsyncClient, known: list[tuple[Body, str]]) -> None:
        outcome = self.outcome
        while outcome.answers < self._requests or outcome.kills < self._kills:
            body, expected = self._rng.choice(known)
            stream = self._rng.random() < 0.7
            started = time.perf_counter()
            try:
                while (text := await ask(client, body, stream=stream)) is None:
                    outcome.turned_away += 1
                    await asyncio.sleep(1)
                assert text == expected, f"altered: {text!r} is not {expected!r}"
            except (AssertionError, httpx.HTTPError) as error:
                outcome.failures.append(f"{'stream' if stream else 'whole'}: {error!r}"[:500])
            outcome.answers += 1
            outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - started)

    async def _kill(self) -> None:
        server = self._service.model_server
        for _ in range(self._kills):
            await asyncio.sleep(self._rng.uniform(*UP_S))
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            self.outcome.kills += 1
            server.start()
            await asyncio.to_thread(self._service.wait_up)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=count, default=KILLS)
    parser.add_argument("--requests", type=count, default=REQUESTS, help="at least so many")
    parser.add_argument("--clients", type=count, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"--seed {args.seed}", flush=True)
    end_in_order()
    with tempfile.TemporaryDirectory() as name:
        model = twin.write(Path(name) / "twin.gguf", file_type="F32")
        with serve(model, Path(name), n_parallel=args.clients // 2) as service:
            trial = Trial(service, args.kills, args.requests, args.seed)
            outcome = asyncio.run(trial.run(args.clients))
            resumes = service.gateway_counter("resumes_total")
    text = (
        f"{report.machine()}, {report.now()}, --seed {args.seed}\n"
        f"{outcome.kills} kills, {args.clients} clients, {outcome.answers} answers of "
        f"{NUM_TOKENS} tokens, {resumes:.0f} resumed behind delivered tokens\n"
        f"told to ask again: {outcome.turned_away}, as a restart took long\n"
        f"lost or altered: {len(outcome.failures)}; slowest {outcome.slowest_s:.1f} s\n"
    )
    print(text, *outcome.failures, sep="\n")
    report.save("faults", txt=text)
    sys.exit(1 if outcome.failures else 0)


if __name__ == "__main__":
    main()
