"""Medusa through both tiers: the known answers, and what clients and operators see of drafting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import twin, twin_heads
from tests.e2e.service import Service, serve

pytestmark = pytest.mark.anyio

NUM_TOKENS = 60
TREE = {"speculation": {"mode": "tree"}}


@pytest.fixture(scope="module")
def drafting(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("drafting")
    heads = twin_heads.write(folder / "heads.gguf")
    with serve(twin_path, folder, medusa_path=heads) as made:
        yield made


def body(prompt: list[int], **fields: object) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, **TREE, **fields}


def expected(prompt: list[int]) -> str:
    return twin.text(twin.answer(prompt, NUM_TOKENS))


async def test_sixteen_at_once_get_the_known_answers(drafting: Service) -> None:
    """Trees, chains, plain ones and whatever pays, in the same steps."""
    modes = ["tree", "chain", "off", "auto"] * 4
    prompts = [twin.prompt(5 + 7 * i, seed=i) for i in range(16)]
    async with drafting.async_client() as client:
        asks = [
            client.post("/v1/completions", json=body(p, speculation={"mode": mode}))
            for p, mode in zip(prompts, modes, strict=True)
        ]
        answers = [answer.json() for answer in await asyncio.gather(*asks)]
    for prompt, mode, answer in zip(prompts, modes, answers, strict=True):
        assert answer["choices"][0]["text"] == expected(prompt)
        if mode in ("tree", "chain"):
            stats = answer["metrics"]["speculative_decoding"]
            assert stats["num_accepted_draft_tokens"] > 0
            assert stats["mean_acceptance_length"] > 1.2
        if mode == "off":
            assert "metrics" not in answer


async def streamed(service: Service, prompt: list[int], **fields: object) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    request = body(prompt, stream=True, **fields)
    async with (
        service.async_client() as client,
        client.stream("POST", "/v1/completions", json=request) as answer,
    ):
        lines = [line async for line in answer.aiter_lines()]
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]


async def test_a_stream_marks_the_tokens_that_were_drafted(drafting: Service) -> None:
    prompt = twin.prompt(9, seed=3)
    chunks = await streamed(drafting, prompt)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert all("draft_trees" not in choice for choice in choices)
    assert "".join(choice["text"] for choice in choices) == expected(prompt)
    ids = [token for choice in choices for token in choice.get("token_ids", [])]
    flags = [flag for choice in choices for flag in choice.get("from_draft", [])]
    assert ids == twin.answer(prompt, NUM_TOKENS)
    assert len(flags) == NUM_TOKENS
    stats = chunks[-1]["metrics"]["speculative_decoding"]
    assert stats["num_accepted_draft_tokens"] == sum(flags) > 0
    assert max(len(choice.get("token_ids", [])) for choice in choices) > 1


async def test_a_stream_shows_its_trees_where_it_is_asked_to(drafting: Service) -> None:
    """Each tree stands behind the text before it, and what came of it is what the stream says."""
    prompt = twin.prompt(9, seed=3)
    chunks = await streamed(drafting, prompt, speculation={"mode": "tree", "show_tree": True})
    text = list(prompt)
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        for tree in choice.get("draft_trees", []):
            assert tree["token_ids"][0] == text[-1]
            came = [tree["token_ids"][node] for node in tree["accepted"]]
            text += twin.answer(text, len(came) + 1)
            assert text[-1 - len(came) : -1] == came
    assert text[len(prompt) :][:NUM_TOKENS] == twin.answer(prompt, NUM_TOKENS)


async def test_counters_and_info_speak_of_drafting(drafting: Service) -> None:
    names = ["num_drafts", "num_draft_tokens", "num_accepted_tokens"]
    counters = [f"spec_decode_{name}_total" for name in names]
    before = [drafting.counter(name) for name in counters]
    async with drafting.async_client() as client:
        answer = (await client.post("/v1/completions", json=body(twin.prompt(7)))).json()
    stats = answer["metrics"]["speculative_decoding"]
    after = [drafting.counter(name) for name in counters]
    counted = ["num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens"]
    grown = [new - old for old, new in zip(before, after, strict=True)]
    assert grown == [stats[name] for name in counted]
    position = 'spec_decode_num_accepted_tokens_per_pos_total{position="0"}'
    assert drafting.counter(position) >= stats["num_accepted_tokens_per_pos"][0]
    info = _info(drafting)
    assert (info["heads"], info["medusa_mode"], info["warnings"]) == (5, "auto", [])


async def test_the_same_seed_gives_the_same_text_with_and_without(drafting: Service) -> None:
    texts = []
    for mode in ("off", "tree"):
        fields = {"temperature": 1.0, "seed": 11, "speculation": {"mode": mode}}
        async with drafting.async_client() as client:
            answer = await client.post("/v1/completions", json=body(twin.prompt(6), **fields))
        texts.append(answer.json()["choices"][0]["text"])
    assert texts[0] == texts[1]


def _info(service: Service) -> dict[str, Any]:
    return dict(httpx.get(f"{service.model_url}/info", trust_env=False).json())
