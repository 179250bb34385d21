"""Numbers on a command line, refused where they are out of their limits."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A type of argument for argparse: a whole number within limits."""
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def number(value: str) -> int:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(f"must be a number {limits}, not {value}")
        return int(value)

    return number


def between(low: float, high: float) -> Callable[[str], float]:
    """A type of argument for argparse: a number from `low` to `high`."""

    def number(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}, not {value}")
        return found

    return number
