"""Whether a grammar takes a whole text, byte by byte: the question that its promise is about."""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher

from model_server.guide.grammar import LIMITS, to_llguidance
from model_server.guide.trial import Bytes, byte_tokenizer

END = Bytes.eos_token_id


def matcher(kind: str, value: Any) -> LLMatcher:
    """Raises Unkept."""
    made = LLMatcher(byte_tokenizer(), to_llguidance(kind, value), log_level=0, limits=LIMITS)
    assert not made.is_error(), made.get_error()
    return made


def takes(made: LLMatcher, text: str) -> bool:
    copy, raw = made.deep_copy(), list(text.encode())
    return copy.try_consume_tokens(raw) == len(raw) and copy.is_accepting()


def takes_value(made: LLMatcher, value: object) -> bool:
    """However its characters are written."""
    return any(takes(made, json.dumps(value, ensure_ascii=each)) for each in (True, False))
