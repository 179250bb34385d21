"""The JSON Schema Test Suite: what is accepted is kept, and nothing that it calls invalid is taken.

It is no part of this project: Debian has it as json-schema-test-suite, PyPI inside the source
archive of jsonschema, below json/tests. JSON_SCHEMA_TEST_SUITE names another folder.
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


@pytest.mark.skipif(
    not SUITE.is_dir(), reason=f"{SUITE} is missing: apt-get install json-schema-test-suite"
)
@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_invalid_is_taken(draft: str) -> None:
    taken, num_kept, num_good, num_taken = [], 0, 0, 0
    for path in sorted((SUITE / draft).rglob("*.json")):
        for group in json.loads(path.read_text()):
            schema = group["schema"]
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
    print(f"{draft}: {num_kept} schemas kept, {num_taken} of {num_good} valid instances taken")
    assert taken == []
    assert num_kept > 100
    assert num_taken > 0.85 * num_good
