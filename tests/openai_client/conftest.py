"""Both real tiers over the known-answer model, and OpenAI's own client before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.service import Service, serve
from tests.openai_client.serving import async_client, client, gateway


@pytest.fixture(scope="package")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    logs = tmp_path_factory.mktemp("logs")
    with serve(twin_path, logs, chat_template="vicuna", max_wait_time=0.005) as made:
        yield made


@pytest.fixture(scope="package")
def openai(service: Service) -> Iterator[OpenAI]:
    with client(service.url) as made:
        yield made


@pytest.fixture(scope="package")
def narrow(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that has place for one answer."""
    logs = tmp_path_factory.mktemp("logs")
    with gateway(service.model_url, logs, max_in_flight=1) as url:
        yield url


@pytest.fixture
async def async_openai(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with async_client(service.url) as made:
        yield made
