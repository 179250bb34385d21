"""Bodies become requests for the model server, or one sentence about one field."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.errors import InvalidRequest
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, GenerateBody
from api.requests.generation import GenerationBody
from api.requests.refusal import refusal
from model_server.contract.protocol import GenerateRequest, Sampling
from tests.api.scripted_server import INFO

HELLO = [{"role": "user", "content": "hello"}]


def parse(body: type[GenerationBody], **fields: Any) -> list[GenerateRequest]:
    defaults: dict[str, Any] = {"messages": HELLO} if body is ChatBody else {"prompt": "a"}
    try:
        return body.model_validate(defaults | fields).requests("id", INFO)
    except ValidationError as error:
        raise refusal(error.errors()) from None


def refused(body: type[GenerationBody], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(body, **fields)
    return caught.value


def test_defaults_are_openais() -> None:
    [request] = parse(CompletionBody)
    assert request.max_tokens == 16
    assert request.sampling.model_copy(update={"seed": 0}) == Sampling()
    assert parse(ChatBody)[0].max_tokens is None
    assert parse(GenerateBody)[0].max_tokens == 256


def test_the_files_own_defaults_come_before_openais() -> None:
    info = INFO.model_copy(update={"sampling": {"temperature": 0.6, "top_k": 20}})
    body = CompletionBody.model_validate({"prompt": "a", "temperature": None, "top_p": 0.9})
    [request] = body.requests("id", info)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.6, 20)
    assert request.sampling.top_p == 0.9
    asked = CompletionBody.model_validate({"prompt": "a", "temperature": 1, "top_k": -1})
    [request] = asked.requests("id", info)
    assert (request.sampling.temperature, request.sampling.top_k) == (1, 0)


@pytest.mark.parametrize("body", [CompletionBody, ChatBody, GenerateBody])
def test_every_setting_of_the_draw_arrives(body: type[GenerationBody]) -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "grammar": 'root ::= "a"',
    }
    ends = {"stop": "x", "stop_token_ids": [7], "ignore_eos": True, "seed": 5}
    [request] = parse(body, logit_bias={"5": -100}, **given, **ends)
    assert request.sampling == Sampling(seed=5, logit_bias={5: -100}, **given)
    assert (request.stop, request.stop_tokens, request.ignore_eos) == (["x"], [7], True)


def test_prompts_and_choices_multiply_in_order() -> None:
    requests = parse(CompletionBody, prompt=["a", "b"], n=2, seed=9)
    assert [request.prompt for request in requests] == ["a", "a", "b", "b"]
    assert [request.sampling.choice for request in requests] == [0, 1, 0, 1]
    assert {request.sampling.seed for request in requests} == {9}
    assert [request.id for request in requests] == ["id-0", "id-1", "id-2", "id-3"]


def test_without_a_seed_each_prompt_gets_its_own() -> None:
    seeds = [request.sampling.seed for request in parse(CompletionBody, prompt=["a", "a"], n=2)]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


@pytest.mark.parametrize(("seed", "wire"), [(-1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (0, 0)])
def test_every_64_bit_seed_is_one(seed: int, wire: int) -> None:
    assert parse(CompletionBody, seed=seed)[0].sampling.seed == wire


def test_prompts_may_be_token_ids() -> None:
    assert parse(CompletionBody, prompt=[1, 2])[0].prompt_tokens == [1, 2]
    lists = parse(CompletionBody, prompt=[[1], [2, 3]])
    assert [request.prompt_tokens for request in lists] == [[1], [2, 3]]


def test_chat_roles_and_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    [request] = parse(ChatBody, messages=messages)
    assert request.messages is not None
    assert [(each.role, each.content) for each in request.messages] == [
        ("system", "s"),
        ("user", "a\nb"),
    ]


def test_newer_and_older_name_of_the_limit() -> None:
    assert parse(ChatBody, max_tokens=3)[0].max_tokens == 3
    assert parse(ChatBody, max_completion_tokens=4)[0].max_tokens == 4


def test_logprobs_in_both_shapes() -> None:
    assert parse(CompletionBody)[0].logprobs is None
    assert parse(CompletionBody, logprobs=0)[0].logprobs == 0
    assert parse(ChatBody, logprobs=True)[0].logprobs == 0
    assert parse(ChatBody, logprobs=True, top_logprobs=5)[0].logprobs == 5


def test_response_format_becomes_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert parse(ChatBody, response_format=wanted)[0].sampling.json_schema == schema
    [any_object] = parse(ChatBody, response_format={"type": "json_object"})
    assert any_object.sampling.json_schema == {"type": "object"}
    assert parse(ChatBody, response_format={"type": "text"})[0].sampling.json_schema is None
    assert parse(GenerateBody, json_schema=schema)[0].sampling.json_schema == schema


def test_null_is_not_given_and_harmless_fields_are_ignored() -> None:
    nothing: dict[str, Any] = dict.fromkeys(["temperature", "stop", "suffix", "tools", "logprobs"])
    parse(CompletionBody, **nothing, user="me", metadata={"a": 1}, echo=False, best_of=1)
    parse(ChatBody, **nothing, store=False, service_tier="auto", tool_choice="none")


TOO_LONG = "a" * (64 * 8 + 1)
DEEP: dict[str, Any] = {}
for _ in range(1_000):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt", r"prompt\[1\] is empty"),
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": 5}, "prompt", "a string, .* got 5"),
        ({"prompt": {"a": 1}}, "prompt", "got {'a': 1}"),
        ({"prompt": ["a", 5]}, "prompt", r"prompt\[1\]"),
        ({"prompt": [1, True]}, "prompt", "got True"),
        ({"prompt": [1, -1]}, "prompt", "from 0 to 99, got -1"),
        ({"prompt": [100]}, "prompt", "from 0 to 99, got 100"),
        ({"prompt": [10**4_000]}, "prompt", "from 0 to 99, got 10000"),
        ({"prompt": [[1], [100]]}, "prompt", r"prompt\[1\]: token ids go"),
        ({"prompt": ["a", TOO_LONG]}, "prompt", r"prompt\[1\] has 513 bytes"),
        ({"prompt": ["a", TOO_LONG], "suffix": "x"}, "prompt", r"prompt\[1\] has 513 bytes"),
        ({"prompt": [1] * 65}, "prompt", "length is 64 tokens: prompt has 65"),
        ({"prompt": TOO_LONG}, "prompt", "length is 64 tokens: prompt has 513 bytes.* 512 can"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "limited to 128, got 130"),
        ({"prompt": ["a"] * 129}, "prompt", "at most 128, got 129"),
        ({"guided_choice": ["ab"] * 32_769}, "guided_choice", "65536 bytes, got 65538"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 129}, "n", "less than or equal to 128, got 129"),
        ({"best_of": 2}, "best_of", "got 2"),
        ({"best_of": 10**4_000}, "best_of", "got 10000"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 1.5}, "max_tokens", "got 1.5"),
        ({"max_tokens": "5"}, "max_tokens", "got '5'"),
        ({"max_tokens": True}, "max_tokens", "got True"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"temperature": float("inf")}, "temperature", "finite"),
        ({"temperature": 11}, "temperature", "less than or equal to 10, got 11"),
        ({"top_p": 0}, "top_p", "greater than 0, got 0"),
        ({"seed": 2**64}, "seed", "less than or equal to"),
        ({"logit_bias": {"100": 1}}, "logit_bias", "from 0 to 99, got 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "got 'x'"),
        ({"logit_bias": [1]}, "logit_bias", "dictionary"),
        ({"stop": ["a"] * 17}, "stop", "stop: at most 16, got 17"),
        ({"stop": "a" * 1_001}, "stop[0]", "1000 char"),
        ({"stop": 5}, "stop", "got 5"),
        ({"stop_token_ids": [100]}, "stop_token_ids", "from 0 to 99, got 100"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "got -1"),
        ({"grammar": "a" * 65_537}, "grammar", "65536 bytes, got 65537"),
        ({"logprobs": 21}, "logprobs", "20, got 21"),
        ({"echo": True}, "echo", "not supported"),
        ({"suffix": "x", "prompt": [1]}, "suffix", "needs prompt to be text"),
        ({"suffix": "x", "prompt": []}, "suffix", "needs prompt to be text"),
        ({"suffix": TOO_LONG}, "suffix", "length is 64 tokens: suffix has 513 bytes.* 512 can"),
        ({"tools": [1]}, "tools", r"not supported, got \[1\]: no tools are called"),
        ({"temprature": 1}, "temprature", "Unknown field temprature"),
        ({"\ud800": 1}, r"\ud800", "Unknown"),
        ({"suffix": [DEEP]}, "suffix", "valid string, got something deeply nested"),
        ({"audio": [DEEP]}, "audio", "not supported, got something deeply nested"),
        ({"stream": 1}, "stream", "got 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream to be true"),
        ({"model": 5}, "model", "got 5"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "got 'xml'"),
    ],
)
def test_what_is_wrong_with_a_completion(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(CompletionBody, **fields)
    assert error.param == param
    with pytest.raises(InvalidRequest, match=says):
        raise error
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "got 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got 5"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}]},
            "messages[0].content[0].type",
            "'text'",
        ),
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, "messages", "513 bytes"),
        (
            {"messages": [*HELLO, {**HELLO[0], "tool_calls": [1]}]},
            "messages[1].tool_calls",
            "not supported",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"audio": {}}, "audio", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"prompt": "a"}, "prompt", "Unknown"),
        (
            {"grammar": "a", "response_format": {"type": "json_object"}},
            "grammar",
            "exclude each other",
        ),
    ],
)
def test_what_is_wrong_with_a_chat(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(ChatBody, **fields)
    assert error.param == param
    with pytest.raises(InvalidRequest, match=says):
        raise error


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (DEEP, "deeper than 64"),
        ({"const": float("nan")}, "JSON compliant"),
        ({"const": "\ud800"}, "surrogates"),
        ({"const": "a" * 70_000}, "65536 bytes"),
        ([1], "dictionary"),
    ],
)
def test_schemas_that_the_wire_cannot_carry(schema: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        raise refused(GenerateBody, json_schema=schema)


def test_a_schema_as_deep_as_allowed_survives_the_wire() -> None:
    schema = json.loads('{"items":' * 63 + "{}" + "}" * 63)
    [request] = parse(GenerateBody, json_schema=schema)
    assert GenerateRequest.model_validate_json(request.model_dump_json()) == request


def test_chat_without_a_template_is_refused_with_the_way_out() -> None:
    body = ChatBody.model_validate({"messages": HELLO})
    with pytest.raises(InvalidRequest, match=r"no chat template.*CHAT_TEMPLATE"):
        body.requests("id", INFO.model_copy(update={"chat": False}))
