from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from model_server.tools.arguments import at_least, between, lines


@pytest.mark.parametrize(("value", "number"), [("2", 2), ("16", 16)])
def test_numbers_within_limits(value: str, number: int) -> None:
    assert at_least(2, 16)(value) == number


@pytest.mark.parametrize("value", ["1", "17", "-3", "2.5", "x", ""])
def test_others_are_refused_with_limits_and_value(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"from 2 to 16, not {value}$"):
        at_least(2, 16)(value)


def test_there_may_be_no_upper_limit() -> None:
    assert at_least(0)("1000000") == 1_000_000
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number of at least 2, not 1"):
        at_least(2)("1")


def test_a_file_has_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n \ntwo\n")
    assert lines(str(path)) == ["one", "two"]
    path.write_text("\n \n")
    with pytest.raises(argparse.ArgumentTypeError, match=r"prompts.txt: is empty, must hold"):
        lines(str(path))


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf", "x"])
def test_fractions_have_limits_too(value: str) -> None:
    assert between(0, 1)("0.05") == 0.05
    with pytest.raises(argparse.ArgumentTypeError, match=f"from 0 to 1, not {value}$"):
        between(0, 1)(value)
