from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.benchmarks import prompts


@pytest.mark.parametrize(
    "line",
    [
        {"question_id": 81, "category": "all", "turns": ["Why?", "And then?"]},
        {"prompt": "Why?", "completion": "Because."},
        {"question": "Why?", "answer": "42"},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Why?"},
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        {"conversations": [{"from": "gpt", "value": "Hi."}, {"from": "human", "value": "Why?"}]},
        "Why?",
    ],
)
def test_the_first_thing_a_person_says_is_the_prompt(tmp_path: Path, line: object) -> None:
    (path := tmp_path / "chats.jsonl").write_text(json.dumps(line) + "\n\n")
    assert prompts.questions(path) == [prompts.Question("all", "Why?")]


def test_a_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    (path := tmp_path / "prompts.txt").write_text(
        "\ufeffWhy?\n\n  And\u2028then?\r\n", encoding="utf-8"
    )
    assert prompts.texts(path) == ["Why?", "And\u2028then?"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.jsonl", "\n", "has no prompts"),
        ("other.jsonl", '{"turns": ["a"]}\n{"story": "b"}', "other.jsonl, line 2: no prompt"),
        ("broken.jsonl", '{"turns": ["a"', "broken.jsonl, line 1: not JSON"),
        ("latin.txt", "caf\xe9", "utf-8"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_a_file_without_prompts_is_a_usage_error(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        prompts.file(str(tmp_path / name))
