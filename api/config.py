"""The gateway's settings: one environment variable each, by the field's name in capitals."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_server.contract.protocol import MAX_BATCH_REQUESTS


def _split(value: str | tuple[str, ...]) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip().rstrip("/") for part in parts if part.strip())


Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Lower = BeforeValidator(str.lower)


class Settings(BaseSettings):
    """Read from the environment at start; an empty variable counts as not set."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    model_server_urls: Addresses = Field(("http://127.0.0.1:8001",), min_length=1)
    """Model servers, with commas; a name stands for all its addresses."""
    batch_size: int = Field(4, ge=1, le=MAX_BATCH_REQUESTS)
    """Requests a batch holds at most; 1: no batching."""
    max_wait_time: float = Field(0.1, ge=0, le=10)
    """Seconds a batch gathers at most, counted from its first request."""
    max_concurrent_batches: int = Field(4, ge=1, le=1_024)
    """Batches sent to one model server and not yet acknowledged; shaped answers don't count."""
    host: str = "0.0.0.0"
    """Address to listen on; 127.0.0.1: this machine only."""
    port: int = Field(8000, ge=1, le=65_535)
    """Port to listen on."""
    request_timeout: float = Field(600, gt=0, le=86_400)
    """Seconds after which a request is given up."""
    retry_attempts: int = Field(5, ge=1, le=100)
    """Attempts in a row that bring no token, at which one gives up."""
    max_in_flight: int = Field(256, ge=1, le=100_000)
    """Answers in the making, in each worker; then status 429."""
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1_024, le=2**31)
    """Largest request body, in bytes."""
    adaptive_batching: bool = True
    """Send what was gathered once nothing comes for 5 ms and a slot is free."""
    api_keys_file: Path | Literal[""] = ""
    """File of API keys, read again when it changes; empty: no key is needed."""
    shared_prefixes: bool = False
    """API keys share computed prefixes: faster, but its time tells of others."""
    rate_limit_requests: int = Field(0, ge=0, le=10**9)
    """Requests a minute for each key or address; 0: no limit."""
    rate_limit_tokens: int = Field(0, ge=0, le=10**9)
    """Prompt and answer tokens a minute, likewise; 0: no limit."""
    rate_limit_storage: str = "memory://"
    """Where they are counted; redis://HOST:PORT to share them."""
    workers: int = Field(1, ge=1, le=256)
    """Gateway processes; each gathers batches of its own."""
    forwarded_allow_ips: str = Field("127.0.0.1", validate_default=True)
    """Proxies whose X-Forwarded-For is believed, with commas; *: all."""
    cors_origins: Addresses = ()
    """Origins whose pages may call this, separated by commas; *: all."""
    drain_timeout: int = Field(30, ge=0, le=3_600)
    """Seconds that open answers get to finish at shutdown."""
    keep_alive_timeout: int = Field(75, ge=5, le=86_400)
    """Seconds that idle connections stay open."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = "info"
    """What is logged: debug, info, warning or error."""
    log_format: Annotated[Literal["text", "json"], Lower] = "text"
    """text, or json: an object a line."""
    log_prompts: bool = False
    """Log what is asked, too: it may be private."""

    @field_validator("model_server_urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)  # raises by itself where the port is none
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError(f"{url!r} is no address like http://127.0.0.1:8001")
        return tuple(dict.fromkeys(urls))

    @field_validator("rate_limit_storage")
    @classmethod
    def _storage(cls, url: str) -> str:
        parts = urlsplit(url)  # raises by itself where the port is none
        is_redis = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
        if url != "memory://" and not is_redis:
            raise ValueError("should be memory://, or an address like redis://127.0.0.1:6379")
        return url

    @field_validator("workers")
    @classmethod
    def _can_share_limits(cls, workers: int, info: ValidationInfo) -> int:
        limits = info.data.get("rate_limit_requests"), info.data.get("rate_limit_tokens")
        if workers > 1 and any(limits) and info.data.get("rate_limit_storage") == "memory://":
            raise ValueError(
                f"{workers} workers share their rate limits through Redis only: set "
                "RATE_LIMIT_STORAGE=redis://HOST:PORT, or WORKERS=1"
            )
        return workers

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies(cls, proxies: str) -> str:
        """Addresses and networks; those of IPv4 also as sockets of IPv6 show them."""
        if proxies.strip() == "*":
            return "*"
        networks = []
        for part in filter(None, map(str.strip, proxies.split(","))):
            try:
                networks += _in_both_families(ip_network(part, strict=False))
            except ValueError:
                raise ValueError(f"{part!r} is no address or network like 10.0.0.0/8") from None
        return ",".join(networks)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.hostname or parts.path or "://" not in origin):
                raise ValueError(f"{origin!r} is no origin like https://example.org")
        return origins


def _in_both_families(network: IPv4Network | IPv6Network) -> list[str]:
    if network.version == 4:
        return [str(network), f"::ffff:{network.network_address}/{96 + network.prefixlen}"]
    if network.network_address.ipv4_mapped is None or network.prefixlen < 96:
        return [str(network)]
    return [str(network), f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}"]
