"""Numbers and empties that mean the default are taken as that."""

from __future__ import annotations

from typing import Any

import pytest

from api.requests.chat import ChatBody, DetokenizeBody
from api.requests.completion import CompletionBody, GenerateBody
from api.requests.generation import GenerationBody
from model_server.contract.protocol import Sampling
from tests.api.requests.test_body import parse, refused
from tests.api.scripted_server import INFO

BODIES = (ChatBody, CompletionBody, GenerateBody)


@pytest.mark.parametrize("body", BODIES)
def test_minus_one_is_as_long_as_there_is_room(body: type[GenerationBody]) -> None:
    assert parse(body, max_tokens=-1)[0].max_tokens is None
    assert parse(body, max_tokens=-1.0)[0].max_tokens is None
    assert parse(body, max_tokens=10**15)[0].max_tokens == 10**15
    assert refused(body, max_tokens=-2).param == "max_tokens"


def test_null_is_the_endpoints_own_length() -> None:
    lengths = [parse(body, max_tokens=None)[0].max_tokens for body in BODIES]
    assert lengths == [None, 16, 256]
    assert parse(ChatBody, max_completion_tokens=-1, max_tokens=5)[0].max_tokens == 5


@pytest.mark.parametrize("body", BODIES)
def test_whole_numbers_may_have_a_point(body: type[GenerationBody]) -> None:
    given = {"max_tokens": 64.0, "top_k": 40.0, "seed": 7.0, "stop_token_ids": [5.0]}
    [request] = parse(body, **given, speculation={"max_tokens_per_step": 2.0})
    assert (request.max_tokens, request.sampling.top_k, request.sampling.seed) == (64, 40, 7)
    assert (request.stop_tokens, request.speculation.max_tokens_per_step) == ([5], 2)
    assert type(request.max_tokens) is int
    for wrong in (64.5, "64", True, float("nan"), float("inf")):
        assert refused(body, max_tokens=wrong).param == "max_tokens"


def test_so_may_ids_and_counts() -> None:
    [request] = parse(CompletionBody, prompt=[1.0, 2], n=1.0, best_of=1.0, logprobs=2.0)
    assert (request.prompt_tokens, request.logprobs) == ([1, 2], 2)
    assert parse(ChatBody, n=1.0, logprobs=True, top_logprobs=3.0)[0].logprobs == 3
    assert DetokenizeBody.model_validate({"tokens": [7.0]}).question(INFO).tokens == [7]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1},
        {"top_k": -1.0},
        {"stop": ""},
        {"stop": [""]},
        {"stop": []},
        {"stop": [None, ""]},
        {"logit_bias": []},
        {"logit_bias": {}},
        {"grammar": ""},
        {"stop_token_ids": []},
        {"speculation": {}},
    ],
    ids=str,
)
def test_empties_are_the_default(body: type[GenerationBody], fields: dict[str, Any]) -> None:
    [request] = parse(body, **fields)
    assert request.sampling.model_copy(update={"seed": 0}) == Sampling()
    assert (request.stop, request.stop_tokens) == ([], [])


@pytest.mark.parametrize("body", [ChatBody, CompletionBody])
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {}},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"continuous_usage_stats": False}},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"modalities": []},
        {"tools": [], "functions": []},
    ],
    ids=str,
)
def test_empties_of_openais_fields_are_the_default(
    body: type[GenerationBody], fields: dict[str, Any]
) -> None:
    known = {name: value for name, value in fields.items() if name in body.model_fields}
    known |= {name: value for name, value in fields.items() if name in body.fates}
    [request] = parse(body, **known)
    assert request.logprobs is None
    assert request.sampling.json_schema is None


def test_an_empty_stop_among_others_ends_nothing() -> None:
    assert parse(ChatBody, stop=["", "a", None])[0].stop == ["a"]


def test_logprobs_true_is_one_alternative_in_a_completion() -> None:
    assert parse(CompletionBody, logprobs=True)[0].logprobs == 1
    assert parse(CompletionBody, logprobs=0)[0].logprobs == 0
