"""The CUDA overlay's first start: a model and its heads from a hub into a volume, then served."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from model_server.tools.presets import PRESETS
from tests import twin, twin_heads
from tests.docker.engine import Project, project

pytestmark = pytest.mark.docker

FILES = ("docker-compose.yml", "deployment/compose.cuda.yml", "tests/docker/hub.yml")
PROMPT = twin.prompt(8)
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def service(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The overlay with the twin for Vicuna, on the CPU."""
    published = tmp_path_factory.mktemp("published")
    published.chmod(0o755)
    preset = PRESETS["vicuna-7b"]
    base, heads = (published / each.repo / each.name for each in (preset.base, preset.heads))
    for path in (base, heads):
        path.parent.mkdir(parents=True)
    twin.write(base, file_type="Q8_0")
    twin_heads.write_published(heads)
    env = {
        "COMPOSE_FILE": ":".join(FILES),
        "MODEL_SERVER_IMAGE": "medusa-model-server:cpu",
        "PUBLISHED": str(published),
        "HF_ENDPOINT": "http://hub:8080",
        "PROMPT_LOOKUP": "false",  # all drafts are the heads'
    }
    with project("fetch", **env) as made:
        made.up()
        yield made


def test_progress_is_seen(service: Project) -> None:
    said = service.compose("logs", "--no-color", "--no-log-prefix", "fetch")
    preset = PRESETS["vicuna-7b"]
    for name in (preset.base.name, preset.heads.name):
        assert f"  {name}: " in said, said
    assert "Converting /models/vicuna-7b/medusa_lm_head.pt." in said


def test_what_was_fetched_is_served_with_its_heads(service: Project) -> None:
    body = {"prompt": twin.prompt_text(PROMPT), "max_tokens": NUM_TOKENS, "temperature": 0}
    answer = httpx.post(f"{service.url}/v1/completions", json=body, trust_env=False, timeout=60)
    [choice] = answer.raise_for_status().json()["choices"]
    assert choice["text"] == twin.text(twin.answer(PROMPT, NUM_TOKENS))
    speculation = answer.json()["metrics"]["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] > 0


def test_another_model_is_not_fetched(service: Project) -> None:
    assert service.compose("run", "--rm", "--env", "MODEL_PATH=/models/own.gguf", "fetch") == ""


def test_a_later_start_fetches_nothing(service: Project) -> None:
    service.compose("stop")
    service.compose("start")
    said = service.compose("logs", "--no-color", "--no-log-prefix", "fetch")
    assert said.count("Nothing to do: ") == 1
