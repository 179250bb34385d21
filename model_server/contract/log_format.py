"""How a line of the log reads, as text or as JSON; what is on it is each tier's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pythonjsonlogger.json import JsonFormatter

NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"}


def json_lines(fields: Sequence[str]) -> logging.Formatter:
    """One object a line, with what a record carries beside these fields."""
    return JsonFormatter(fields, rename_fields=NAMES)


class TextLines(logging.Formatter):
    """Text, and behind it those of these ids that a record carries: `request`, `trace`."""

    def __init__(self, text: str, *ids: str) -> None:
        super().__init__(text)
        self._ids = ids

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's own name
        text = super().formatMessage(record)
        for name in self._ids:
            if value := getattr(record, f"{name}_id", None):
                text += f" {name}={value}"
        return text
