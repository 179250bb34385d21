"""The lines of README and docs/CLIENTS.md, run as they stand but for the address."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.fenced import blocks
from tests.e2e.service import Service, serve
from tests.openai_client.serving import known_reply

SHOWN = "http://localhost:8000"
LEAST_CHARS = 30  # of an answer that goes on to the context's end
PYTHON = {
    f"{document}, {block.split()[1]}": block
    for document in ("README.md", "docs/CLIENTS.md")
    for block in blocks(document, "python")
}
CURLS = {
    f"{document}, {number}": line.replace("\\\n", " ")
    for document in ("README.md", "docs/CLIENTS.md")
    for number, line in enumerate(
        re.findall(r"^curl (?:.*\\\n)*.*", "\n".join(blocks(document, "sh")), re.MULTILINE)
    )
}


@pytest.fixture(scope="module")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    logs = tmp_path_factory.mktemp("logs")
    few = {"max_wait_time": 0.005, "model_context_size": 512}  # answers go on to its end
    with serve(twin_path, logs, chat_template="vicuna", **few) as made:
        yield made


def said(command: list[str], service: Service) -> str:
    direct = {"no_proxy": "*", "NO_PROXY": "*"}
    ours = [part.replace(SHOWN, service.url) for part in command]
    assert ours != command
    done = subprocess.run(
        ours, env={**os.environ, **direct}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PYTHON)
def test_python_gets_the_known_answer(service: Service, name: str) -> None:
    package = name.rsplit(maxsplit=1)[-1].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test does it")
    answer = said([sys.executable, "-c", PYTHON[name]], service).rstrip("\n")
    assert len(answer) > LEAST_CHARS
    assert known_reply(5_000).startswith(answer)


@pytest.mark.parametrize("name", CURLS)
def test_curl_is_answered(service: Service, name: str) -> None:
    command = ["bash", "-c", CURLS[name]]
    answer = said(command, service)
    if '"stream": true' in CURLS[name]:
        assert answer.startswith("data: {")
        assert answer.endswith("data: [DONE]\n\n")
    else:
        assert '"choices":[{' in answer
        assert '"finish_reason":"' in answer


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) == 4
    assert len(CURLS) == 3
