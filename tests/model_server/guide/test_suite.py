"""The JSON Schema Test Suite: what is accepted is kept, and nothing that it calls invalid is taken.

It is no part of this project: PyPI has it inside the source archive of jsonschema, below
json/tests, Debian as json-schema-test-suite (Debian 12 with drafts up to 7 only).
JSON_SCHEMA_TEST_SUITE names the folder of drafts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from model_server.guide.trial import problem_of
from tests.model_server.guide.accepting import matcher, takes_value

SUITE = Path(os.environ.get("JSON_SCHEMA_TEST_SUITE", "/usr/share/json-schema-test-suite/tests"))
DRAFTS = ["draft4", "draft6", "draft7", "draft2019-09", "draft2020-12"]


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_invalid_is_taken(draft: str) -> None:
    if not (SUITE / draft).is_dir():
        pytest.skip(f"{SUITE / draft} is missing: JSON_SCHEMA_TEST_SUITE can name another folder")
    taken, num_schemas, num_kept, num_good, num_taken = [], 0, 0, 0, 0
    for path in sorted((SUITE / draft).rglob("*.json")):
        for group in json.loads(path.read_text()):
            schema = group["schema"]
            num_schemas += 1
            if not isinstance(schema, dict) or problem_of("json_schema", schema):
                continue
            num_kept += 1
            made = matcher("json_schema", schema)
            for test in group["tests"]:
                takes = takes_value(made, test["data"])
                num_good += test["valid"]
                num_taken += test["valid"] and takes
                if takes and not test["valid"]:
                    taken.append((path.name, group["description"], test["description"]))
    print(
        f"{draft}: {num_kept} of {num_schemas} schemas, {num_taken} of {num_good} valid instances"
    )
    assert taken == []
    assert num_kept > 0.41 * num_schemas
    assert num_taken > 0.85 * num_good
