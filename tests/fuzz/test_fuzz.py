"""A short campaign in every test run; `make fuzz` is the long one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.service import Service, serve
from tests.fuzz.campaign import SETTINGS, run, run_until

NUM_CASES = 300


@pytest.fixture(scope="module")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(twin_path, tmp_path_factory.mktemp("logs"), **SETTINGS) as made:
        yield made


@pytest.mark.slow
def test_no_case_breaks_the_service_or_its_documentation(service: Service, tmp_path: Path) -> None:
    document = f"{service.url}/openapi.json"
    options = ("--phases", "examples,fuzzing", "--max-examples", "40")
    campaign = run_until(NUM_CASES, document, tmp_path, *options)
    assert campaign.passed, campaign.log
    assert httpx.get(f"{service.url}/ready", trust_env=False).status_code == 200


def test_a_campaign_notices_what_is_not_documented(service: Service, tmp_path: Path) -> None:
    """A document that forgets the refusals is one that the gateway breaks."""
    document = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()
    for name in ("400", "413"):
        del document["paths"]["/detokenize"]["post"]["responses"][name]
    document["paths"] = {"/detokenize": document["paths"]["/detokenize"]}
    only = tmp_path / "openapi.json"
    only.write_text(json.dumps(document))
    campaign = run(str(only), tmp_path, "--url", service.url, "--max-examples", "20")
    assert not campaign.passed
    assert "Undocumented" in campaign.log
    assert "Received: 400" in campaign.log
