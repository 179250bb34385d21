"""Each metric of the model server is moved by what clients do to the gateway, none forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server.metrics import PREFIX, ModelServerMetrics
from tests import twin, twin_heads
from tests.e2e.service import Service, serve, wait_until

pytestmark = pytest.mark.anyio

CONTEXT = 512
NUM_TOKENS = 200


def body(prompt: list[int], **fields: object) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}


def figures(service: Service) -> dict[str, float]:
    """Every sample that is not 0, by its name and labels."""
    text = httpx.get(f"{service.model_url}/metrics", trust_env=False).text
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value and not sample.name.endswith("_created")
    }


async def until_seen(service: Service, *names: str) -> dict[str, float]:
    """All that was not 0 until these were not."""
    seen: dict[str, float] = {}

    def are_seen() -> bool:
        seen.update(figures(service))
        return seen.keys() >= {f"{PREFIX}_{name}" for name in names}

    await asyncio.to_thread(wait_until, are_seen, f"{names} to be seen")
    return seen


async def test_every_metric_is_moved_by_requests(twin_path: Path, tmp_path: Path) -> None:
    settings = {
        "medusa_path": twin_heads.write(tmp_path / "heads.gguf"),
        "medusa_rows": 4,  # heads have a share only where they run, be it dear
        "n_parallel": 2,
        "model_context_size": CONTEXT,
        "kv_cache_tokens": CONTEXT,
        "max_wait_time": 0.01,
    }
    with serve(twin_path, tmp_path, **settings) as service:
        async with service.async_client() as client:
            seen = await crowd(service, client)
            drafted = body(twin.prompt(9, seed=3), speculation={"mode": "tree"})
            assert (await client.post("/v1/completions", json=drafted)).status_code == 200
            wrong = await client.post("/v1/completions", json=body([5], grammar="root ::= nothing"))
            assert wrong.status_code == 400
            longer = body([5], max_tokens=500)
            leaving = asyncio.create_task(client.post("/v1/completions", json=longer))
            await until_seen(service, "num_requests_running")
            leaving.cancel()
            seen |= await until_seen(service, "request_success_total abort")
    names = {name.split()[0] for name in seen}
    ours = {each.name for each in ModelServerMetrics().registry.collect()}
    assert {each for each in ours if not any(name.startswith(each) for name in names)} == set()
    assert seen[f"{PREFIX}_request_success_total length"] == 5
    assert seen[f"{PREFIX}_request_failures_total {wrong.json()['error']['code']}"] == 1
    assert seen[f"{PREFIX}_e2e_request_latency_seconds_count"] == 5
    assert 0 <= seen[f"{PREFIX}_head_accuracy"] <= 1
    assert seen[f"{PREFIX}_inter_token_latency_seconds_count"] >= 4 * (NUM_TOKENS / 2 - 1)


async def crowd(service: Service, client: httpx.AsyncClient) -> dict[str, float]:
    """Four answers of one prompt, where two have a slot and the pool has room for one."""
    asked = body(twin.prompt(200), speculation={"max_tokens_per_step": 2})
    asks = [client.post("/v1/completions", json=asked) for _ in range(4)]
    answers = asyncio.gather(*asks)
    seen = await until_seen(service, "num_requests_waiting", "num_requests_running")
    assert {answer.status_code for answer in await answers} == {200}
    return seen
