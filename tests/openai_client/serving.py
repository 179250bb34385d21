"""OpenAI's client before a service, gateways for what that must not suffer, and known answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam

from tests import twin, vocabulary
from tests.e2e.service import Process, Service, wait_until
from tests.ports import free_port

# Any text that ends in this piece has the same known continuation.
TOKENS = twin.prompt(8)
PROMPT = twin.prompt_text(TOKENS)
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "ba be"}]
MODEL = "whatever"


def known(prompt: list[int] = TOKENS, *, num_tokens: int) -> str:
    """The greedy continuation of a prompt."""
    return twin.text(twin.answer(prompt, num_tokens))


def known_reply(num_tokens: int) -> str:
    """The greedy reply to any chat: its prompt always ends in the colon of `ASSISTANT:`."""
    colon = vocabulary.token_ids(twin.TINY.vocab_size)[":"]
    return known([colon], num_tokens=num_tokens).removeprefix(" ")


def ending(text: str) -> tuple[str, str]:
    """A stop string that this text runs into, and the text before it."""
    stop = text[-5:]
    return stop, text[: text.index(stop)]


def client(url: str, **options: Any) -> openai.OpenAI:
    """It tries once, unless told otherwise, and finds the service whatever proxies are set."""
    http_client = openai.DefaultHttpxClient(trust_env=False)
    given = {"api_key": "none", "max_retries": 0, "timeout": 60, "http_client": http_client}
    return openai.OpenAI(base_url=f"{url}/v1", **{**given, **options})


def async_client(url: str, **options: Any) -> openai.AsyncOpenAI:
    """The same without waiting."""
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
    given = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
    return openai.AsyncOpenAI(base_url=f"{url}/v1", http_client=http_client, **given)


@contextmanager
def gateway(model_url: str, logs: Path, **settings: object) -> Iterator[str]:
    """A gateway with settings of its own before somebody else's model server; its address."""
    port = free_port()
    listening = {"host": "127.0.0.1", "port": port, "model_server_urls": model_url}
    process = Process("api", logs / f"gateway-{port}.log", **{**listening, **settings})
    try:
        wait_until(lambda: "gateway on" in process.log, "the gateway to listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        code = process.stop()
    assert code == 0, process.log


def wait_running(service: Service, count: int) -> None:
    """Until so many requests hold a slot."""
    wait_until(
        lambda: service.counter("num_requests_running") == count, f"{count} to run", timeout_s=10
    )
