"""`.env`, where Docker Compose and python-dotenv do not read the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployment.env_file import read_env_file
from deployment.needs import CannotStart


def read(folder: Path, text: str) -> dict[str, str]:
    (folder / ".env").write_text(text)
    return read_env_file(folder / ".env")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'p$ss'", "p$ss"),
        ("'${PORT}'", "${PORT}"),
        ("${PORT}", "8010"),
        ('"a ${PORT}"', "a 8010"),
        ("${NOWHERE:-9}", "9"),
    ],
)
def test_a_dollar_means_what_it_means_to_compose(tmp_path: Path, written: str, meant: str) -> None:
    assert read(tmp_path, f"PORT=8010\nMODEL_NAME={written}\n")["MODEL_NAME"] == meant


@pytest.mark.parametrize("written", ["p$ss", '"p$ss"', "$PORT", "cost$"])
def test_a_dollar_that_compose_would_take_for_a_variable_is_named(
    tmp_path: Path, written: str
) -> None:
    with pytest.raises(CannotStart, match=r"line 2: MODEL_NAME holds a \$.*single quotes"):
        read(tmp_path, f"PORT=8010\nMODEL_NAME={written}\n")


@pytest.mark.parametrize("written", ["PORT 8010", "=3", "MODEL_NAME='x", 'MODEL_NAME="x'])
def test_a_line_that_is_none_is_named(tmp_path: Path, written: str) -> None:
    place = re.escape(f"{tmp_path}/.env, line 2: must be NAME=VALUE")
    with pytest.raises(CannotStart, match=f"^{place}"):
        read(tmp_path, f"PORT=8010\n{written}\n")


def test_no_file_has_no_settings(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env") == {}
