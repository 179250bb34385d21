from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model_server.contract import protocol
from model_server.contract.protocol import EVENTS, Batch, GenerateRequest, Sampling


def request(**fields: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "hi", **fields}


def test_the_contract_imports_nothing_of_ours() -> None:
    source = Path(protocol.__file__).read_text(encoding="utf-8")
    assert "model_server" not in source.split('"""', 2)[2]


def test_a_request_comes_back_from_its_json() -> None:
    whole = GenerateRequest.model_validate(
        request(
            sampling={"seed": 2**64 - 1, "logit_bias": {3: -1.5}, "json_schema": {"type": "null"}},
            resume={"tokens": [1, 2], "num_chars": 3},
        )
    )
    assert GenerateRequest.model_validate_json(whole.model_dump_json()) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": None},
        {"prompt_tokens": [1]},
        {"prompt": None, "prompt_tokens": [1], "messages": []},
        {"prompt": 7},
        {"prompt": "\ud800"},
        {"prompt": None, "messages": [{"role": "user", "content": "\udc00"}]},
        {"prompt": None, "prompt_tokens": ["one"]},
        {"prompt": None, "messages": [{"role": "robot", "content": "x"}]},
        {"prompt": None, "messages": [{"role": "user", "content": None}]},
        {"id": ""},
        {"id": "x" * 129},
        {"attempt": 0},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"stop": ["x"] * 17},
        {"stop_tokens": [1] * 17},
        {"logprobs": 21},
        {"resume": {"tokens": [1], "num_chars": -1}},
        {"best_of": 3},
        {"sampling": {"beams": 2}},
    ],
)
def test_malformed_requests_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate(request(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2**31},
        {"min_p": 1.5},
        {"repeat_penalty": 0},
        {"presence_penalty": 11},
        {"seed": -1},
        {"seed": 2**64},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {1: 1e300}},
        {"logit_bias": {"word": 1}},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"grammar": "\ud800"},
    ],
)
def test_sampling_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": []},
        {"requests": [request(), request()]},
        {"requests": [request(id=str(i)) for i in range(protocol.MAX_BATCH_REQUESTS + 1)]},
        {"id": "", "requests": [request()]},
    ],
)
def test_malformed_batches_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Batch.model_validate({"id": "b", **wrong})


@pytest.mark.parametrize(
    "event",
    [
        {"event": "accepted", "id": "a", "prompt_tokens": 3},
        {"event": "started", "id": "a"},
        {"event": "token", "id": "a", "ids": [1], "text": "é"},
        {"event": "done", "id": "a", "finish_reason": "stop", "prompt_tokens": 3,
         "completion_tokens": 1, "matched_stop": "\n"},
        {"event": "error", "id": "a", "status": 400, "code": "x", "message": "y"},
    ],
)  # fmt: skip
def test_events_are_told_apart_by_their_name(event: dict[str, Any]) -> None:
    parsed = EVENTS.validate_json(json.dumps(event))
    assert parsed.event == event["event"]
    assert EVENTS.validate_json(parsed.model_dump_json(exclude_none=True)) == parsed


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(ValidationError):
        EVENTS.validate_python({"event": "pause", "id": "a"})


def test_errors_do_not_hold_what_was_sent() -> None:
    with pytest.raises(ValidationError) as event:
        EVENTS.validate_json('{"event": "token", "id": "a", "ids": "secret", "text": 5}')
    with pytest.raises(ValidationError) as batch:
        Batch.model_validate({"id": "a", "requests": [request(max_tokens="secret")]})
    assert "secret" not in str(event.value) + str(batch.value)


def test_values_are_not_kept_for_the_next_time() -> None:
    """A parser that keeps short strings would keep ids, of which none comes again."""
    line = '{"event": "started", "id": "an-id"}'
    first, second = EVENTS.validate_json(line), EVENTS.validate_json(line)
    assert first.id == second.id
    assert first.id is not second.id
