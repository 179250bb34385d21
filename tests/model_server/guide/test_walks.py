"""Whatever text a kept schema's grammar allows parses, and is valid to two validators."""

from __future__ import annotations

import json
import random
import re

import jsonschema_rs
from jsonschema import Draft202012Validator

from model_server.guide.trial import problem_of
from tests.model_server.guide import schemas
from tests.model_server.guide.accepting import matcher

NUM_SCHEMAS, TEXTS_EACH = 700, 4
# Valid JSON, but no finite number to a program.
_HUGE = re.compile(r"\d[eE]\+?\d{3}")


def test_every_text_is_valid() -> None:
    bad, num_kept, num_texts = [], 0, 0
    for seed in range(NUM_SCHEMAS):
        rng = random.Random(seed)
        schema = schemas.schema(rng)
        if problem_of("json_schema", schema):
            continue
        num_kept += 1
        made = matcher("json_schema", schema)
        one = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        other = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for text in (schemas.text(made, rng) for _ in range(TEXTS_EACH)):
            if text is None or _HUGE.search(text):
                continue
            num_texts += 1
            value = json.loads(text)
            if not other.is_valid(value) or (_ends(schema) and not one.is_valid(value)):
                bad.append((seed, text))
    print(f"{num_kept} of {NUM_SCHEMAS} schemas kept, {num_texts} texts")
    assert bad == []
    assert num_kept > NUM_SCHEMAS / 5
    assert num_texts > 2 * num_kept


def _ends(schema: object) -> bool:
    """Whether one validator, which follows references for ever, can be asked."""
    return "$ref" not in json.dumps(schema)
