"""Schemathesis against the gateway's own OpenAPI document, both real tiers behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Whether a request can be served depends on more than a schema can say: the model's context, its
# template, fields that belong together. So valid data may be refused; the reverse may not happen.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)

# A short window and short answers, so that time goes into cases. Slots and room for all of them,
# since the longest answer there is has 128 choices that fill the context.
SETTINGS = {
    "max_wait_time": 0.005,
    "model_context_size": 192,
    "kv_cache_tokens": 8_192,
    "n_parallel": 32,
    "chat_template": "vicuna",
}

# What a case may take before it counts as hanging.
TIMEOUT_S = 30


@dataclass(frozen=True)
class Campaign:
    """How it went: how many cases there were, and what it said."""

    num_cases: int
    passed: bool
    log: str


def run_until(num_cases: int, document: str, folder: Path, *options: str) -> Campaign:
    """Rounds with other seeds until there were so many cases, or one failed."""
    done = Campaign(0, True, "")
    seed = 1
    while done.passed and done.num_cases < num_cases:
        last = run(document, folder, "--seed", str(seed), *options)
        assert last.num_cases, last.log
        done = Campaign(done.num_cases + last.num_cases, last.passed, done.log + last.log)
        seed += 1
    return done


def run(document: str, folder: Path, *options: str) -> Campaign:
    """Try every operation of a document, by its address or path; leaves reports in `folder`."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    # One worker: what Hypothesis parses in one thread, CPython 3.11 counts in another.
    command = [sys.executable, "-m", "schemathesis.cli", "run", document]
    command += ["--checks", ",".join(CHECKS), "--request-timeout", str(TIMEOUT_S), "--no-color"]
    command += ["--report", "json", "--report-json-path", str(report)]
    command += ["--continue-on-failure", "--workers", "1"]
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "*", "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    num_cases = json.loads(report.read_text())["test_cases"]["generated"] if report.exists() else 0
    return Campaign(num_cases, done.returncode == 0, log)
