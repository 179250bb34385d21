"""Numbers of JSON Schemas: those that all parsers read alike, and bounds that the library keeps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from model_server.guide.refusal import Unkept

EXACT = 2**53  # whole numbers up to here are themselves in every parser
_DIGITS = 15  # and so are numbers of so many digits


def number(keyword: str, value: Any) -> int | float:
    """Of a keyword that needs one. Raises Unkept."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unkept(keyword, "must be a number")
    refuse_inexact(keyword, value)
    if value == int(value):
        return int(value)
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    if max(len(digits), -int(exponent)) > _DIGITS:
        raise Unkept(keyword, f"{value!r} has more than {_DIGITS} digits")
    return value


def included(keyword: str, bound: int | float) -> tuple[str, int | float]:
    """The same keyword and bound, but an inclusive bound, a unit of the last digit further, for a
    whole number that a range begins behind: where it ends before the next, the library takes it.
    """
    unit = 10.0 ** (len(str(abs(bound))) - _DIGITS)
    if keyword == "exclusiveMinimum" and isinstance(bound, int) and bound >= 0:
        return "minimum", bound + unit
    if keyword == "exclusiveMaximum" and isinstance(bound, int) and bound <= 0:
        return "maximum", bound - unit
    return keyword, bound


def refuse_inexact(keyword: str, value: Any) -> None:
    """Numbers that a parser may round. Raises Unkept."""
    if isinstance(value, int | float) and not abs(value) <= EXACT:
        raise Unkept(keyword, f"numbers must be from {-EXACT} to {EXACT}")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            refuse_inexact(keyword, each)
