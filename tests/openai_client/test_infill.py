"""Gaps are filled by a model that has the tokens for it; one without says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai as package
import pytest
from openai import OpenAI

from tests import infill_twin
from tests.e2e.service import Service, serve
from tests.openai_client.serving import MODEL, client

KNOWN = infill_twin.filling(12)
EDITORS = {"input_prefix": "ba", "input_suffix": "be", "n_predict": 12, "temperature": 0}


@pytest.fixture(scope="module")
def knowing(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("infill")
    path = infill_twin.write(twin_path, folder / "twin.gguf")
    with serve(path, folder, max_wait_time=0.005, model_context_size=512) as made:
        yield made


def infill(service: Service, **given: object) -> httpx.Response:
    return httpx.post(f"{service.url}/infill", json=EDITORS | given, trust_env=False, timeout=60)


def test_a_suffix_makes_a_gap(knowing: Service) -> None:
    given: dict[str, Any] = {"model": MODEL, "prompt": "ba", "suffix": "be"}
    given |= {"max_tokens": 12, "temperature": 0}
    with client(knowing.url) as openai:
        whole = openai.completions.create(**given)
        stream = openai.completions.create(**given, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == KNOWN
    assert whole.choices[0].text == KNOWN
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12


def test_infill(knowing: Service) -> None:
    extra = [{"text": "bo bu", "filename": "a.py"}]
    answer = infill(knowing, input_extra=extra).json()
    assert (answer["content"], answer["stop_type"]) == (KNOWN, "limit")
    stopped = infill(knowing, stop=[KNOWN[-4:]]).json()
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", KNOWN[-4:])
    assert stopped["content"] == KNOWN[:-4]


def test_infill_as_a_stream(knowing: Service) -> None:
    lines = infill(knowing, stream=True).text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == KNOWN
    assert [event["stop"] for event in events].index(True) == len(events) - 1


def test_a_prompt_is_read_ahead_of_time(knowing: Service) -> None:
    given = {"input_prefix": "ba be bi bo " * 40, "cache_prompt": True}
    ahead = infill(knowing, **given, n_predict=0).json()
    then = infill(knowing, **given).json()
    assert (ahead["tokens_predicted"], ahead["stop_type"]) == (1, "limit")
    assert then["timings"]["cache_n"] >= ahead["tokens_evaluated"] - 1
    assert then["tokens_cached"] == then["tokens_evaluated"] + 11


def test_what_is_longer_than_the_context_is_cut_far_from_the_gap(knowing: Service) -> None:
    answer = infill(knowing, input_prefix="ba be " * 5_000, input_suffix="ca " * 5_000).json()
    assert answer["content"] == KNOWN


def test_a_model_without_the_tokens_refuses(service: Service, openai: OpenAI) -> None:
    error = infill(service).json()["error"]
    assert error["param"] == "input_suffix"
    assert error["message"].startswith("input_suffix: this model has no tokens for filling gaps")
    with pytest.raises(package.BadRequestError, match="no tokens for filling gaps") as caught:
        openai.completions.create(model=MODEL, prompt="ba", suffix="be")
    assert caught.value.param == "suffix"
