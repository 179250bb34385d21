"""Shaped answers: the same tokens with drafts and without, resumed too; and what is forced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_server.errors import RequestError
from tests.model_server.drafters import MakeDrafter, drafts, plain
from tests.model_server.engine.stack import EXACT, Layout, Stack, stack
from tests.models import STDLIB

NUM_REQUESTS = 50
LAYOUT = Layout(4_096, 8, 0.0405, kv=dict(EXACT), ordered=True)

WORD = {"type": "string", "pattern": "^[a-z]{1,8}$"}
SHAPES: list[dict[str, Any]] = [
    {
        "json_schema": {
            "type": "object",
            "properties": {
                "name": WORD,
                "kind": {"enum": ["module", "class", "function"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 99},
                "tags": {"type": "array", "items": WORD, "maxItems": 3},
                "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
            },
            "required": ["name", "kind", "count", "tags", "more"],
            "additionalProperties": False,
        }
    },
    {"grammar": 'root ::= "def " [a-z]+ "(" [a-z]* ")" (":" | " -> " ("int" | "str") ":")'},
    {"regex": r"[A-Z][a-z]{2,9} = \d{1,4}"},
    {"choices": ["import os", "import os.path", "import sys", "from os import path"]},
    {"json_schema": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4}},
]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 7, "top_p": 0.95},
    {"temperature": 1.5, "seed": 8, "repeat_penalty": 1.1},
]


def request(made: Stack, number: int) -> dict[str, Any]:
    text = f"# Part {number} of the library. Here is what it does:\n"
    return {
        "prompt": made.intake.vocab.tokenize(text * 3),
        "max_tokens": 120,
        "sampling": {**SHAPES[number % len(SHAPES)], **SAMPLINGS[number % len(SAMPLINGS)]},
    }


def answer_all(make_drafter: MakeDrafter) -> Stack:
    with stack(STDLIB, LAYOUT, make_drafter) as made:
        for number in range(NUM_REQUESTS):
            made.submit(str(number), **request(made, number))
        made.run()
        return made


@pytest.fixture(scope="module")
def off() -> Stack:
    return answer_all(plain)


def test_drafts_change_no_token(off: Stack) -> None:
    on = answer_all(drafts(rows=6))
    assert [on.answer(str(i)) for i in range(NUM_REQUESTS)] == [
        off.answer(str(i)) for i in range(NUM_REQUESTS)
    ]
    assert on.num_accepted() > 300
    print(f"{on.num_accepted()} drafts accepted")


def test_resumed_half_way_they_go_on_the_same(off: Stack) -> None:
    with stack(STDLIB, LAYOUT, drafts(rows=6)) as made:
        for number in range(NUM_REQUESTS):
            done = off.answer(str(number))
            resume = {"tokens": done[: len(done) // 2], "num_chars": 0}
            made.submit(str(number), **request(made, number), resume=resume)
        made.run()
        for number in range(NUM_REQUESTS):
            done = off.answer(str(number))
            assert made.answer(str(number)) == done[len(done) // 2 :]


def test_a_resumed_answer_that_breaks_its_grammar_is_refused(twin_path: Path) -> None:
    with stack(twin_path) as made, pytest.raises(RequestError, match="the grammar refuses"):
        made.submit("a", [5], sampling={"choices": ["ba"]}, resume={"tokens": [9], "num_chars": 0})


TEN_KEYS = {
    "type": "object",
    "properties": {f"{name}_of_item": {"type": "boolean"} for name in "abcdefghij"},
    "required": [f"{name}_of_item" for name in "abcdefghij"],
    "additionalProperties": False,
}


def test_what_is_forced_is_drafted() -> None:
    """Ten fixed keys, no heads: steps an answer, at what pays by a flat cost curve."""
    layout = Layout(4_096, 8, 0.0405, step_s={1: 0.010, 8: 0.011, 512: 0.512})
    steps, texts = {}, {}
    for name, made_by in (("off", plain), ("on", drafts())):
        with stack(STDLIB, layout, made_by) as made:
            prompt = made.intake.vocab.tokenize("# What is true of it:\n")
            sampling = {"json_schema": TEN_KEYS, "temperature": 0}
            made.submit("a", prompt, max_tokens=300, sampling=sampling)
            made.run()
            steps[name], texts[name] = len(made.steps("a")), made.text("a")
    assert list(json.loads(texts["on"])) == TEN_KEYS["required"]
    assert texts["on"] == texts["off"]
    print(f"steps: {steps}")
    assert steps["off"] >= 1.5 * steps["on"]
