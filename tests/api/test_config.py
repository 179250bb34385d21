import pytest
from pydantic import ValidationError

from api.config import Settings


def test_defaults_are_those_of_the_design() -> None:
    settings = Settings()
    assert settings.batch_size == 4
    assert settings.max_wait_time == 0.1
    assert settings.max_concurrent_batches == 4
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.model_server_urls == ("http://127.0.0.1:8001",)


def test_names_are_plain_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "8")
    monkeypatch.setenv("MODEL_SERVER_URLS", "http://one:1/, http://two:2,http://one:1")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("PORT", "")
    settings = Settings()
    assert settings.batch_size == 8
    assert settings.model_server_urls == ("http://one:1", "http://two:2")
    assert settings.log_level == "debug"
    assert settings.port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "257"),
        ("MAX_WAIT_TIME", "-1"),
        ("MAX_WAIT_TIME", "nan"),
        ("PORT", "70000"),
        ("REQUEST_TIMEOUT", "0"),
        ("MODEL_SERVER_URLS", "localhost:8001"),
        ("MODEL_SERVER_URLS", ","),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name
