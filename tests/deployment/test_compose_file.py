"""docker-compose.yml and its overlays against the settings and files they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.config import Settings as GatewaySettings
from model_server.config import ModelServerSettings
from model_server.tools import download
from model_server.tools.presets import PRESETS

ROOT = Path(__file__).parents[2]
# What the images and the compose file fix.
FIXED = {"HOST", "PORT", "MODEL_SERVER_HOST", "MODEL_SERVER_PORT"}


def services(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text())["services"])


def names(service: dict[str, Any]) -> list[str]:
    return [each.partition("=")[0] for each in service["environment"]]


@pytest.mark.parametrize(
    ("service", "settings"), [("gateway", GatewaySettings), ("model-server", ModelServerSettings)]
)
def test_every_setting_reaches_its_container(service: str, settings: Any) -> None:
    passed = names(services("docker-compose.yml")[service])
    known = {name.upper() for name in settings.model_fields} - FIXED
    assert len(passed) == len(set(passed))
    assert {name for name in passed if not name.startswith("OTEL_")} == known


@pytest.mark.parametrize("name", ["docker-compose.yml", "deployment/compose.cuda.yml"])
def test_services_may_do_little(name: str) -> None:
    for service in services(name).values():
        if "user" in service or "image" not in service or service.get("deploy"):
            continue
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_model_server_is_not_published() -> None:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    server = document["services"]["model-server"]
    assert "ports" not in server
    assert [document["networks"][name]["internal"] for name in server["networks"]] == [True]


def test_the_cuda_overlay_serves_what_it_fetches() -> None:
    overlay = services("deployment/compose.cuda.yml")
    assert overlay["fetch"]["build"] == overlay["model-server"]["build"]
    [module, preset, _, quant, _, folder] = overlay["fetch"]["command"]
    assert module == download.__name__
    assert overlay["model-server"]["environment"][0].startswith("MODEL_PATH=")
    path = re.sub(r".*:-(.*)}", r"\1", overlay["model-server"]["environment"][0])
    assert quant == "${QUANT:-Q8_0}"
    assert path == f"{folder}/{PRESETS[preset].file_name('Q8_0')}"


def test_old_and_new_compose_can_read_them() -> None:
    """Compose 1.29 knows none of these."""
    for path in [ROOT / "docker-compose.yml", *ROOT.glob("deployment/compose.*.yml")]:
        text = path.read_text()
        assert not re.search(r"^(name|include):|^ +(gpus|start_interval|develop):", text, re.M)


@pytest.mark.parametrize("name", ["Dockerfile.gateway", "Dockerfile.model-server"])
def test_any_builder_can_build_the_images(name: str) -> None:
    text = (ROOT / "deployment" / name).read_text()
    assert not re.search(r"^# syntax=|<<|COPY --link|RUN --mount|COPY --chmod", text, re.M)
