"""The gateway's settings: one environment variable each, by the field's name in capitals."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_server.protocol import MAX_BATCH_REQUESTS


class Settings(BaseSettings):
    """Read from the environment at start; an empty variable counts as not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    model_server_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        ("http://127.0.0.1:8001",),
        min_length=1,
        description="Addresses of the model servers, separated by commas.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        le=MAX_BATCH_REQUESTS,
        description="Requests a batch holds at most; 1: no batching.",
    )
    max_wait_time: float = Field(
        0.1, ge=0, le=10, description="Seconds a batch gathers, counted from its first request."
    )
    max_concurrent_batches: int = Field(
        4, ge=1, le=1_024, description="Batches sent to one model server and not yet acknowledged."
    )
    host: str = Field("0.0.0.0", description="Address to listen on; 127.0.0.1: this machine only.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")
    request_timeout: float = Field(
        600, gt=0, le=86_400, description="Seconds after which a request is given up."
    )
    retry_attempts: int = Field(
        5, ge=1, le=100, description="How often a request is sent to a model server at most."
    )
    max_in_flight: int = Field(
        256, ge=1, le=100_000, description="Answers in the making at most; beyond it, status 429."
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1_024, le=2**31, description="Largest request body, in bytes."
    )
    drain_timeout: int = Field(
        30, ge=0, le=3_600, description="Seconds that open answers get to finish at shutdown."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged: debug, info, warning or error."
    )

    @field_validator("model_server_urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @field_validator("model_server_urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no address like http://127.0.0.1:8001")
        return tuple(dict.fromkeys(urls))

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value
