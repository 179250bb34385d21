"""Both real tiers over the known-answer model, for other people's clients, unchanged."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service, serve

# LiteLLM asks the network for prices when it is imported, unless told that its own list will do;
# the Agents SDK sends traces to OpenAI.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"


@pytest.fixture(scope="package")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    logs = tmp_path_factory.mktemp("logs")
    with serve(twin_path, logs, chat_template="vicuna", max_wait_time=0.005) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What a client leaves open is its own matter, and is not held against tests that follow.

    LiteLLM keeps its connections for ten minutes, and drops them open.
    """
    yield
    if litellm := sys.modules.get("litellm"):
        litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()
