"""What a benchmark can be asked for; anything else is a usage error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence

import httpx

from tests.gguf_file import FILE_TYPES
from tests.twin_heads import Accuracy


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def url(text: str) -> str:
    """A server's address, with or without the /v1 that OpenAI's clients are told."""
    try:
        given = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text} is no address: {error}") from None
    if given.scheme not in ("http", "https") or not given.host:
        raise argparse.ArgumentTypeError(f"{text} is no address as http://127.0.0.1:8000 is")
    return text.rstrip("/").removesuffix("/v1")


def weights(text: str) -> str:
    """A type that the twin's weights can have."""
    if text.upper() not in FILE_TYPES:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(FILE_TYPES)}")
    return text.upper()


def accuracy(text: str) -> str:
    """Of the twin's heads."""
    try:
        Accuracy.named(text)
    except (OSError, ValueError, TypeError) as error:
        what = "neither published nor 0 nor a JSON file of shares"
        raise argparse.ArgumentTypeError(f"{text} is {what}: {error}") from None
    return text


def sides(parser: argparse.ArgumentParser, names: Sequence[str], others: Collection[str]) -> None:
    """A usage error unless they are `off`, `auto`, numbers of rows or others, `off` first."""
    if names[0] != "off":
        parser.error("--sides must begin with off: all others are compared with it")
    for name in names:
        if not (name in ("off", "auto", *others) or (name.isdecimal() and int(name))):
            known = ", ".join(["off", "auto", "a number of rows", *others])
            parser.error(f"--sides has {name}, which is none of: {known}")
    if len(set(names)) < len(names):
        parser.error(f"--sides names one twice: {' '.join(names)}")
