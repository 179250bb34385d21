"""What a newcomer meets: nothing is named, and the README's question is answered as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployment import run
from model_server.engine.prompt import NO_INFILL
from tests.e2e.service import Service, serve
from tests.structure.modules import ROOT

README = (ROOT / "README.md").read_text()
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve("", tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture
def client(demo: Service) -> Iterator[httpx.Client]:
    with demo.client() as opened:
        yield opened


def examples(client: httpx.Client) -> list[tuple[str, dict[str, object]]]:
    """(path, body) of everything that "Execute" can send."""
    paths = client.get("/openapi.json").json()["paths"]
    found = []
    for path, operations in paths.items():
        if "requestBody" in operations.get("post", {}):
            content = operations["post"]["requestBody"]["content"]["application/json"]
            found += [(path, each["value"]) for each in content["examples"].values()]
    return found


def shown(text: str) -> tuple[str, dict[str, Any]]:
    """Path and body of the first curl in it."""
    found = re.search(r"curl http://localhost:\d+(\S+) .*?-d '(.*?)'", text, re.DOTALL)
    assert found is not None
    return found[1], json.loads(found[2])


def test_every_example_of_the_documentation_works(client: httpx.Client) -> None:
    tried = examples(client)
    for path, body in tried:
        answer = client.post(path, json=body)
        if path == "/infill":  # the demo says that it knows no gaps
            assert answer.json()["error"]["message"] == f"input_{NO_INFILL}"
            continue
        assert answer.status_code == 200, f"{path} {body}: {answer.text}"
        assert answer.text
    assert {"/v1/completions", "/v1/chat/completions", "/generate"} <= {path for path, _ in tried}


def test_the_first_curl_is_answered_as_the_readme_says(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    path, body = shown(README)
    answer = client.post(path, json=body)
    [choice] = answer.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    [said] = re.findall(r"^# \.\.\. (.*) \.\.\.$", README, re.M)
    assert said in answer.text
    run.say_ready("http://localhost:8000", with_key=False)
    assert shown(capsys.readouterr().out) == (path, body)


@pytest.mark.parametrize("mode", ["auto", "off", "chain", "tree"])
def test_a_stream_ends_where_the_model_ends_its_turn(client: httpx.Client, mode: str) -> None:
    path, body = shown(README)
    body |= {"stream": True, "speculation": {"mode": mode}}
    with client.stream("POST", path, json=body) as answer:
        data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    choices = [json.loads(each)["choices"][0] for each in data]
    assert "".join(each["delta"].get("content", "") for each in choices) == ANSWER
    assert [each["finish_reason"] for each in choices if each["finish_reason"]] == ["stop"]


def test_chats_go_through_the_models_own_template(client: httpx.Client) -> None:
    _, body = shown(README)
    asked = {"messages": body["messages"], "return_token_strs": True}
    prompt = client.post("/tokenize", json=asked).json()
    text = "".join(prompt["token_strs"]).replace("Ġ", " ").replace("Ċ", "\n")
    question = f"<|im_start|>user\n{body['messages'][0]['content']}<|im_end|>\n"
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith(f"{question}<|im_start|>assistant\n")
    raw = {"prompt": prompt["tokens"], "temperature": 0, "max_tokens": 32}
    [choice] = client.post("/v1/completions", json=raw).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (ANSWER, "stop")


def test_it_is_known_by_its_name_and_has_heads(client: httpx.Client) -> None:
    [card] = client.get("/v1/models").json()["data"]
    assert card["id"] == "SmolLM2-135M-Instruct"
    assert card["medusa_heads"] > 0


QUESTION = "Name the capital of France."
# As the demo model's template writes it.
CHATML = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


def count(client: httpx.Client, **asked: Any) -> int:
    return int(client.post("/tokenize", json=asked).json()["count"])


def test_a_template_that_clients_write_themselves_is_the_chats(client: httpx.Client) -> None:
    chat = count(client, messages=[{"role": "user", "content": QUESTION}])
    assert count(client, prompt=CHATML) == chat
    assert count(client, prompt=CHATML, parse_special=False) > chat
    assert count(client, messages=[{"role": "user", "content": CHATML}]) > 2 * chat
    asked = {"prompt": CHATML, "temperature": 0, "max_tokens": 40}
    [choice] = client.post("/v1/completions", json=asked).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (ANSWER, "stop")


def test_a_stop_may_be_the_end_of_turns(client: httpx.Client) -> None:
    asked = {"prompt": CHATML, "temperature": 0, "max_tokens": 40, "stop": ["<|im_end|>"]}
    [choice] = client.post("/v1/completions", json=asked).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (ANSWER, "stop")


def test_the_assistants_words_are_continued(client: httpx.Client) -> None:
    words = "The capital of"
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": words}]
    asked: dict[str, Any] = {"messages": turns, "temperature": 0, "max_tokens": 40}
    [choice] = client.post("/v1/chat/completions", json=asked).json()["choices"]
    assert words + choice["message"]["content"] == ANSWER
    again = {**asked, "add_generation_prompt": True}
    [choice] = client.post("/v1/chat/completions", json=again).json()["choices"]
    assert not choice["message"]["content"].startswith(" France")


def test_logprobs_of_a_byte_level_vocabulary(client: httpx.Client) -> None:
    asked = {"prompt": "日本", "max_tokens": 6, "temperature": 0, "logprobs": 20}
    [choice] = client.post("/v1/completions", json=asked).json()["choices"]
    found = choice["logprobs"]
    for token, value, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert len(top) == 20
        assert top[token] == value == max(top.values())
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)
