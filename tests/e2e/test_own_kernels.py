"""With kernels of our own an answer's text does not depend on who else is served: a chat at
temperature 0 has one text, where stock attention gives it several.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from model_server.llama import kernels
from tests.e2e.service import Service, serve

QUESTIONS = (
    "Compose a travel blog post about a recent trip to the sea.",
    "Describe a vivid and unique character in one paragraph.",
    "Explain why the sky is blue to a child.",
    "Write a polite email to a landlord about a broken window.",
    "What are the main differences between cats and dogs?",
    "Give me three ideas for a rainy day, with reasons.",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if not kernels.path().exists():
        pytest.skip(f"{kernels.path()} is missing: this build has no kernels of its own")
    with serve("", tmp_path_factory.mktemp("logs"), cpu_kernels="auto") as made:
        if not info(made)["cpu_kernels"]:
            pytest.skip("the kernels are not for this processor: " + made.model_server.log[-300:])
        yield made


def info(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.model_url}/info", trust_env=False).json()
    return found


def ask(service: Service, question: str, mode: str, **more: object) -> list[str]:
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 0,
        "speculation": {"mode": mode},
        **more,
    }
    with service.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_what_is_computed_by_them_is_told(service: Service) -> None:
    named = info(service)["cpu_kernels"]
    weights = {"blk.*.attn_q.weight", "blk.*.ffn_down.weight", "token_embd.weight"}
    assert {"attention", "heads", *weights} <= named.keys()
    assert len(set(named.values())) == 1


def test_a_chat_has_one_text(service: Service) -> None:
    """Alone and beside others, with drafts and without, on a pool that fills up in between."""
    texts: dict[str, set[str]] = {question: set() for question in QUESTIONS}
    for mode in ("off", "tree"):
        for question in QUESTIONS:
            texts[question].update(ask(service, question, mode))
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            answers = pool.map(lambda question, mode=mode: ask(service, question, mode), QUESTIONS)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            texts[question].update(answer)
    assert {question: len(found) for question, found in texts.items()} == dict.fromkeys(
        QUESTIONS, 1
    )


def test_choices_at_temperature_0_are_equal(service: Service) -> None:
    choices = ask(service, QUESTIONS[0], "auto", n=4)
    assert len(choices) == 4
    assert len(set(choices)) == 1
