from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from model_server import config
from model_server.config import DEMO_HEADS, DEMO_MODEL, ModelServerSettings, read_settings
from model_server.errors import SettingError


def test_defaults_serve_the_demo_model_on_loopback() -> None:
    settings = ModelServerSettings()
    assert settings.model_path == DEMO_MODEL
    assert settings.gateway_is_local
    assert settings.model_server_port == 8001


def test_heads_and_name_come_with_the_demo_model_alone() -> None:
    demo, other = ModelServerSettings(), ModelServerSettings(model_path=Path("other.gguf"))
    assert (demo.heads_path, demo.shown_name) == (DEMO_HEADS, "SmolLM2-135M-Instruct")
    assert (other.heads_path, other.shown_name) == (None, "")
    own = ModelServerSettings(medusa_path=Path("own.gguf"), model_name="mine")
    assert (own.heads_path, own.shown_name) == (Path("own.gguf"), "mine")


def test_a_demo_model_that_is_not_installed_is_missed_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "DEMO_MODEL", None)
    with pytest.raises(SettingError, match=r"^MODEL_PATH: no file .*`deployment/setup\.sh demo`$"):
        read_settings()
    assert read_settings(model_path="other.gguf").heads_path is None


def test_the_environment_is_read_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_PARALLEL", "3")
    monkeypatch.setenv("EXACT", "true")
    settings = ModelServerSettings()
    assert settings.n_parallel == 3
    assert settings.exact


def test_levels_are_read_as_the_gateway_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    monkeypatch.setenv("LOG_FORMAT", "Json")
    settings = ModelServerSettings()
    assert (settings.log_level, settings.log_format) == ("info", "json")


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_PARALLEL", "")
    monkeypatch.setenv("MODEL_PATH", "")
    assert ModelServerSettings().n_parallel == 8
    assert ModelServerSettings().model_path == DEMO_MODEL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("N_PARALLEL", "0"),
        ("N_PARALLEL", "129"),
        ("N_PARALLEL", "many"),
        ("MODEL_CONTEXT_SIZE", "-1"),
        ("MODEL_CONTEXT_SIZE", "1"),
        ("N_GPU_LAYERS", "-2"),
        ("N_THREADS", "1.5"),
        ("KV_CACHE_TOKENS", "-1"),
        ("KV_CACHE_TYPE", "q4_0"),
        ("FLASH_ATTENTION", "maybe"),
        ("EXACT", "perhaps"),
        ("MAX_STEP_MS", "-5"),
        ("MODEL_SERVER_PORT", "65536"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_values_out_of_limits_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        ModelServerSettings()
    assert caught.value.errors()[0]["loc"] == (name.lower(),)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_a_gateway_is_local_only_behind_a_loopback_address(host: str, local: bool) -> None:
    assert ModelServerSettings(model_server_host=host).gateway_is_local is local


def test_every_field_is_described() -> None:
    fields = ModelServerSettings.model_fields.items()
    assert [name for name, field in fields if not field.description] == []


def test_a_wrong_setting_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_PARALLEL", "0")
    with pytest.raises(SettingError, match=r"N_PARALLEL: .*greater than or equal to 1, got '0'"):
        read_settings()
