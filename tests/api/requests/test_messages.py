"""Messages as clients send and replay them."""

from __future__ import annotations

from typing import Any

import pytest

from api.requests.chat import ChatBody
from model_server.contract.protocol import ChatOptions, GenerateRequest, Message
from tests.api.requests.test_body import parse, refused

USER = {"role": "user", "content": "hi"}


def turns(*messages: dict[str, Any]) -> list[Message]:
    [request] = parse(ChatBody, messages=[USER, *messages, USER])
    assert request.messages is not None
    return request.messages[1:-1]


def said(content: str, reasoning: str | None = None) -> list[Message]:
    return [Message(role="assistant", content=content, reasoning_content=reasoning)]


@pytest.mark.parametrize(
    "beside",
    [
        {"tool_calls": None, "function_call": None, "audio": None, "refusal": None},
        {"tool_calls": [], "function_call": {"name": "", "arguments": ""}, "audio": {}},
        {"provider_specific_fields": {"a": 1}, "cache_control": {"type": "ephemeral"}},
        {"annotations": [{"type": "url_citation"}], "name": "me", "id": "x", "timestamp": 5},
        {"images": [], "files": None, "attachments": [], "experimental_attachments": []},
        {"tool_call_id": None, "prefix": True, "weight": 1, "providerOptions": {}, "done": True},
        {"thinking_blocks": [{"type": "thinking"}], "reasoning_details": [], "feedback": None},
    ],
)
def test_what_stands_beside_the_words_of_history_is_ignored(beside: dict[str, Any]) -> None:
    assert turns({"role": "assistant", "content": "a", **beside}) == said("a")
    for role in ("user", "system"):
        assert turns({"role": role, "content": "a", **beside})[0].content == "a"


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_may_have_said_nothing(content: dict[str, Any]) -> None:
    assert turns({"role": "assistant", **content}) == said("")


def test_a_refusal_is_what_was_said() -> None:
    assert turns({"role": "assistant", "content": None, "refusal": "No."}) == said("No.")
    parts = [{"type": "refusal", "refusal": "No."}]
    assert turns({"role": "assistant", "content": parts}) == said("No.")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_kept_for_the_template(name: str) -> None:
    assert turns({"role": "assistant", "content": "a", name: "b"}) == said("a", "b")
    assert turns({"role": "user", "content": "a", name: "b"})[0].reasoning_content is None


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ["a", {"text": "b"}],
        [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b", "logprobs": []}],
        [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, "b"],
        [{"type": "thinking", "thinking": "hm", "signature": "x"}, "a", "b"],
        ["a", {"type": "image_url", "image_url": {"url": ""}}, {"type": "file", "file": None}, "b"],
        [{"type": "text", "text": "a\nb", "provider_specific_fields": None, "annotations": [1]}],
    ],
)
def test_text_parts_are_lines(parts: list[Any]) -> None:
    for role in ("user", "assistant"):
        assert [each.content for each in turns({"role": role, "content": parts})] == ["a\nb"]


def test_one_part_needs_no_list() -> None:
    assert turns({"role": "user", "content": {"type": "text", "text": "a"}})[0].content == "a"


@pytest.mark.parametrize("part", [{"type": "text", "content": "a"}, {"type": "text", "value": "a"}])
def test_words_by_another_name_are_not_lost(part: dict[str, Any]) -> None:
    error = refused(ChatBody, messages=[{"role": "user", "content": [part]}])
    assert str(error) == "messages[0].content[0]: text is missing."


TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": [TOOL_CALL]}, "messages[1].tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "user", "content": "a", "images": ["aGk="]}, "messages[1].images"),
        ({"role": "tool", "content": "5", "tool_call_id": "1"}, "messages[1].role"),
        ({"role": "function", "content": "5", "name": "f"}, "messages[1].role"),
        *(
            ({"role": "user", "content": ["a", part]}, "messages[1].content[1].type")
            for part in (
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
                {"type": "input_image", "image_url": "data:image/png;base64,aGk="},
                {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
                {"type": "video_url", "video_url": {"url": "https://a.example/b.mp4"}},
                {"type": "file", "file": {"file_id": "1"}},
                {"type": "image", "source": {"type": "base64", "data": "aGk="}},
                {"type": "tool_use", "name": "f", "input": {}},
            )
        ),
    ],
)
def test_what_is_no_text_is_said_to_be_unsupported(message: dict[str, Any], param: str) -> None:
    error = refused(ChatBody, messages=[USER, message])
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert "supported" in str(error)
    assert "nknown field" not in str(error)


def options(last: str, **fields: Any) -> ChatOptions:
    [request] = parse(ChatBody, messages=[USER, {"role": last, "content": "a"}], **fields)
    return request.chat


BEGIN, CONTINUE = (
    ChatOptions(),
    ChatOptions(add_generation_prompt=False, continue_final_message=True),
)
NEITHER = ChatOptions(add_generation_prompt=False)


@pytest.mark.parametrize(
    ("last", "fields", "expected"),
    [
        ("user", {}, BEGIN),
        ("assistant", {}, CONTINUE),
        ("assistant", {"add_generation_prompt": False}, CONTINUE),
        ("assistant", {"add_generation_prompt": True}, BEGIN),
        ("assistant", {"continue_final_message": False}, BEGIN),
        ("user", {"continue_final_message": True, "add_generation_prompt": False}, CONTINUE),
        ("user", {"add_generation_prompt": False}, NEITHER),
        (
            "assistant",
            {"add_generation_prompt": False, "continue_final_message": False},
            NEITHER,
        ),
    ],
)
def test_the_assistants_last_words_are_continued(
    last: str, fields: dict[str, Any], expected: ChatOptions
) -> None:
    assert options(last, **fields) == expected


def test_a_turn_is_begun_or_continued() -> None:
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert refused(ChatBody, **both).param == "continue_final_message"


def test_variables_of_the_template() -> None:
    asked = {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}
    assert options("user", **asked).variables == {
        "enable_thinking": True,
        "reasoning_effort": "high",
    }
    assert options("user", reasoning_effort="none").variables == {"enable_thinking": False}
    assert options("user", chat_template_kwargs=None).variables == {}
    own = refused(ChatBody, chat_template_kwargs={"messages": []})
    assert own.param == "chat_template_kwargs"
    assert refused(ChatBody, reasoning_effort="much").param == "reasoning_effort"


def test_on_the_wire_a_plain_chat_says_nothing_of_it() -> None:
    [request] = parse(ChatBody)
    wire = request.model_dump_json(exclude_defaults=True)
    assert '"chat"' not in wire
    assert GenerateRequest.model_validate_json(wire) == request
