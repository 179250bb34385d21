"""Timeouts and retries of the client's own, against what the gateway says about them."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
import pytest
from openai import (
    APITimeoutError,
    AsyncOpenAI,
    BadRequestError,
    DefaultHttpxClient,
    OpenAI,
    RateLimitError,
)

from tests.e2e.service import Service, serve
from tests.openai_client.serving import (
    MODEL,
    PROMPT,
    client,
    known,
    wait_running,
)


def retries(request_headers: object) -> str:
    assert hasattr(request_headers, "get")
    return str(request_headers.get("x-stainless-retry-count"))


def test_a_timeout_frees_the_slot(openai: OpenAI, service: Service) -> None:
    with pytest.raises(APITimeoutError):
        openai.with_options(timeout=0.3).completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4_000
        )
    wait_running(service, 0)


def test_a_timeout_of_one_request(openai: OpenAI, service: Service) -> None:
    with pytest.raises(APITimeoutError):
        openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4_000, timeout=0.3)
    wait_running(service, 0)
    assert openai.completions.create(model=MODEL, prompt=PROMPT, timeout=30).choices


@pytest.mark.anyio
async def test_a_timeout_without_waiting(async_openai: AsyncOpenAI, service: Service) -> None:
    with pytest.raises(APITimeoutError):
        await async_openai.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4_000, timeout=0.3
        )
    wait_running(service, 0)


def test_a_stream_that_speaks_in_time_outlives_the_timeout(openai: OpenAI) -> None:
    """The client's timeout is for the next bytes, not for the whole answer."""
    timeout_s = 1
    with openai.with_options(timeout=timeout_s).completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=2_500, temperature=0, stream=True
    ) as stream:
        text = next(iter(stream)).choices[0].text
        time.sleep(1.1 * timeout_s)  # however quick the machine is
        text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == known(num_tokens=2_500)


def test_a_full_gateway_is_tried_again_until_there_is_place(narrow: str) -> None:
    """After as long as Retry-After says."""
    with client(narrow) as first, client(narrow, max_retries=3) as second:
        stream = first.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4_000, stream=True)
        next(iter(stream))
        leaving = Timer(0.5, stream.close)
        leaving.start()
        started = time.monotonic()
        raw = second.completions.with_raw_response.create(model=MODEL, prompt=PROMPT, temperature=0)
        assert raw.parse().choices[0].text == known(num_tokens=16)
        assert retries(raw.http_request.headers) == "1"
        assert time.monotonic() - started >= 1
        leaving.join()


def test_without_retries_it_is_not_tried_again(narrow: str) -> None:
    with (
        client(narrow) as opened,
        opened.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4_000, stream=True
        ) as stream,
    ):
        next(iter(stream))
        with pytest.raises(RateLimitError) as refused:
            opened.completions.create(model=MODEL, prompt=PROMPT)
    assert retries(refused.value.request.headers) == "0"


def test_a_bad_request_is_never_tried_again(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.with_options(max_retries=5).completions.create(model=MODEL, prompt="")
    assert retries(refused.value.request.headers) == "0"


def test_a_model_server_that_starts_is_waited_for(twin_path: Path, tmp_path: Path) -> None:
    """By the client's retries, where the gateway gives up before it is there."""
    with serve(twin_path, tmp_path, request_timeout=1) as made:
        made.model_server.stop()

        def start_once_refused(response: httpx.Response) -> None:
            if response.status_code == 503 and made.model_server.popen.poll() is not None:
                made.model_server.start()

        hooks: Any = {"response": [start_once_refused]}
        http_client = DefaultHttpxClient(trust_env=False, event_hooks=hooks)
        with client(made.url, max_retries=8, http_client=http_client) as opened:
            raw = opened.completions.with_raw_response.create(
                model=MODEL, prompt=PROMPT, max_tokens=1, temperature=0
            )
    assert raw.parse().choices[0].text == known(num_tokens=1)
    assert int(retries(raw.http_request.headers)) >= 1
