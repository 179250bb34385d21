"""`.env`, read as Docker Compose reads it."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from deployment.needs import CannotStart


def read_env_file(path: Path) -> dict[str, str]:
    """As Docker Compose reads it: comments behind values, `export`, quotes, a byte-order mark,
    `${NAME}` but between single quotes. Raises CannotStart over what the two would read apart.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CannotStart(f"{path} is not text in UTF-8.") from None
    lines = list(parse_stream(StringIO(text)))
    if wrong := next((each for each in lines if each.error), None):
        at = f"{path}, line {wrong.original.line}"
        raise CannotStart(f"{at}: must be NAME=VALUE, and where a quote begins it must end.")
    found = dotenv_values(stream=StringIO(text))
    for each in lines:
        if each.key is None or each.value is None:
            continue
        if each.original.string.partition("=")[2].lstrip().startswith("'"):
            found[each.key] = each.value
        elif re.search(r"\$(?!\{)", each.value):
            raise CannotStart(
                f"{path}, line {each.original.line}: {each.key} holds a $, with which a variable "
                "begins for Docker Compose. Put the value in single quotes."
            )
    return {name: value for name, value in found.items() if value is not None}
