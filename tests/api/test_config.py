from typing import Any

import pytest
from pydantic import ValidationError
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.app import create_app
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
        ("MODEL_SERVER_URLS", "http://models:port"),
        ("MODEL_SERVER_URLS", "http://models:0"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("RATE_LIMIT_REQUESTS", "-1"),
        ("RATE_LIMIT_TOKENS", "many"),
        ("RATE_LIMIT_STORAGE", "memcached://127.0.0.1"),
        ("RATE_LIMIT_STORAGE", "redis://"),
        ("RATE_LIMIT_STORAGE", "redis://127.0.0.1:port"),
        ("RATE_LIMIT_STORAGE", "127.0.0.1:6379"),
        ("FORWARDED_ALLOW_IPS", "proxy.internal"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/33"),
        ("FORWARDED_ALLOW_IPS", "*,10.0.0.1"),
        ("CORS_ORIGINS", "example.org"),
        ("CORS_ORIGINS", "https://example.org/path"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize(
    "url", ["memory://", "redis://a", "redis://:pass@a:6379/0", "rediss://u:p@[::1]:6379"]
)
def test_storages(url: str) -> None:
    assert Settings(rate_limit_storage=url).rate_limit_storage == url


def test_a_wrong_storage_does_not_show_its_password() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(rate_limit_storage="http://user:secret@a")
    assert "secret" not in refused.value.errors()[0]["msg"]


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.org, http://localhost:3000")
    assert Settings().cors_origins == ("https://a.org", "http://localhost:3000")


@pytest.mark.parametrize(
    ("given", "trusted", "strangers"),
    [
        (None, ["127.0.0.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1"]),
        ("*", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"], []),
        ("10.1.2.3/8, ::1", ["10.9.9.9", "::ffff:10.9.9.9", "::1"], ["11.0.0.1", "::2"]),
        ("::ffff:10.0.0.0/104", ["10.9.9.9", "::ffff:10.9.9.9"], ["::ffff:11.0.0.1"]),
        ("::ffff:10.0.0.1", ["10.0.0.1", "::ffff:10.0.0.1"], ["10.0.0.2"]),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "10.0.0.1"]),
    ],
)
def test_a_proxy_is_trusted_however_its_socket_shows_it(
    given: str | None, trusted: list[str], strangers: list[str]
) -> None:
    settings = Settings() if given is None else Settings(forwarded_allow_ips=given)
    app: Any = create_app(settings)
    known = ProxyHeadersMiddleware(app, settings.forwarded_allow_ips).trusted_hosts
    assert [host for host in trusted if host not in known] == []
    assert [host for host in strangers if host in known] == []


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name
