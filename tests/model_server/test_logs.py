from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from model_server import logs
from model_server.contract.protocol import Done, Failed, Timings

DONE = Done(
    id="r-0",
    finish_reason="stop",
    prompt_tokens=7,
    cached_tokens=3,
    completion_tokens=5,
    timings=Timings(queue_s=0.001, prefill_s=0.02, decode_s=0.3),
)


@contextmanager
def logging_as(level: str, form: str) -> Iterator[None]:
    """As a process that begins: the root logger has no handlers yet. Restored afterwards."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers = []
    logs.configure(level, form)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(before)
        logs.say.handlers = []


def test_the_end_of_a_request_is_an_object_with_its_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logging_as("info", "json"):
        logs.ended(DONE)
        logs.ended(Failed(id="r-1", status=400, code="grammar", message="Your text: x."))
        logs.cancelled("r-2")
    done, failed, cancelled = map(json.loads, capsys.readouterr().err.splitlines())
    assert (done["request_id"], done["level"]) == ("r-0", "INFO")
    assert (done["prompt_tokens"], done["cached_tokens"], done["completion_tokens"]) == (7, 3, 5)
    assert (done["queue_ms"], done["prefill_ms"], done["decode_ms"]) == (1.0, 20.0, 300.0)
    assert (failed["request_id"], failed["status"], failed["code"]) == ("r-1", 400, "grammar")
    assert "Your text" not in str(failed)
    assert cancelled["request_id"] == "r-2"


@pytest.mark.parametrize("level", ["debug", "error"])
def test_what_is_said_at_start_is_said_at_every_level_and_once(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_as(level, "text"):
        logs.say.info("ready: %s", "a model")
    assert capsys.readouterr().err == "model server: ready: a model\n"
    with logging_as(level, "json"):
        logs.say.info("ready")
    assert json.loads(capsys.readouterr().err)["message"] == "ready"


def test_what_a_file_says_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as("info", "text"):
        logs.say.error("MODEL_PATH a.gguf: its kind is %s", "\n\x1b[2Jllamé\u2028\x9b")
        logging.warning("two\nlines")
    said, logged = capsys.readouterr().err.splitlines()
    assert said == r"model server: MODEL_PATH a.gguf: its kind is \n\x1b[2Jllamé\u2028\x9b"
    assert re.fullmatch(r"[\d-]{10} [\d:]{8},\d{3} WARNING root: two\\nlines", logged)
