"""Paths as clients write them: with slashes too many, without /v1, or with two."""

from __future__ import annotations

import re

_V1 = ["chat/completions", "completions", "responses", "embeddings", "models"]
PATHS = [f"/v1/{name}" for name in _V1] + ["/generate", "/infill", "/tokenize", "/detokenize"]
# Asked by the page only, while it shows an answer; no part of the interface.
MARKDOWN = "/page/markdown"
_SLASHES = re.compile(r"//+")
# Base URLs are given with and without /v1, and some clients add it themselves.
_OPENAIS = re.compile(r"(?:/v1)*(/(?:(?:chat/)?completions|responses|embeddings|models)(?:/.*)?)")


def plain(path: str) -> str:
    """The path that is meant. Nothing is redirected: a client may not follow, or lose its body."""
    path = _SLASHES.sub("/", path)
    path = path.rstrip("/") or "/"
    match = _OPENAIS.fullmatch(path)
    return f"/v1{match[1]}" if match else path
