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
