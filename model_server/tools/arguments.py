"""Types of arguments for argparse: numbers within limits, and the lines of a file."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def at_least(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A whole number within limits."""
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def number(value: str) -> int:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(f"must be a number {limits}, not {value}")
        return int(value)

    return number


def between(low: float, high: float) -> Callable[[str], float]:
    """A number from `low` to `high`."""

    def number(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}, not {value}")
        return found

    return number


def lines(path: str) -> list[str]:
    """Those of a file that aren't empty, of which there must be one."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{path}: must be UTF-8 text: {error.reason}") from None
    if not (found := [line for line in text.split("\n") if line.strip()]):
        raise argparse.ArgumentTypeError(f"{path}: is empty, must hold a prompt on each line")
    return found
