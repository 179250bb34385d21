"""Token counts of an answer, and what names it, as OpenAI writes them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from typing_extensions import TypedDict

from model_server.contract.protocol import Done


class CachedTokens(TypedDict):
    cached_tokens: int


class UsageBlock(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


@dataclass(frozen=True)
class Heading:
    """What every chunk of an answer repeats."""

    id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


class Usage:
    """Sums over the choices; a prompt counts once, however many choices it has."""

    def __init__(self, choices_per_prompt: int) -> None:
        self._choices_per_prompt = choices_per_prompt
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0

    def add(self, index: int, done: Done) -> None:
        self._completion_tokens += done.completion_tokens
        if index % self._choices_per_prompt == 0:
            self._prompt_tokens += done.prompt_tokens
            self._cached_tokens += done.cached_tokens

    def block(self) -> UsageBlock:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
