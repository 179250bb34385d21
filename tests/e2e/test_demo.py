"""What a newcomer meets: the demo model, and the examples that /docs offers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from model_server.config import DEMO_MODEL
from tests.e2e.service import Service, serve, stream_text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(DEMO_MODEL, tmp_path_factory.mktemp("logs")) as made:
        yield made


def examples(client: httpx.Client) -> list[tuple[str, dict[str, object]]]:
    """(path, body) of everything that "Execute" can send."""
    paths = client.get("/openapi.json").json()["paths"]
    found = []
    for path, operations in paths.items():
        if "requestBody" in operations.get("post", {}):
            content = operations["post"]["requestBody"]["content"]["application/json"]
            found += [(path, each["value"]) for each in content["examples"].values()]
    return found


def test_every_example_of_the_documentation_works(demo: Service) -> None:
    with demo.client() as client:
        tried = examples(client)
        for path, body in tried:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, f"{path} {body}: {answer.text}"
            assert answer.text
    assert {"/v1/completions", "/v1/chat/completions", "/generate"} <= {path for path, _ in tried}


def test_the_demo_model_writes_python(demo: Service) -> None:
    body = {"prompt": "import os\nimport ", "max_tokens": 12, "temperature": 0}
    with demo.client() as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            assert stream_text(answer.iter_lines()) == whole
    compile("import " + whole.partition("\n")[0], "answer", "exec")


def test_chats_go_through_the_models_own_template(demo: Service) -> None:
    body = {
        "messages": [{"role": "user", "content": "def f(x):"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    with demo.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
        raw = {"prompt": "def f(x):\n", "max_tokens": 8, "temperature": 0}
        text = client.post("/v1/completions", json=raw).json()["choices"][0]["text"]
    assert answer["choices"][0]["message"]["content"] == text
