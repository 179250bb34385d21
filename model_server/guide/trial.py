"""Compiles a grammar in a child first: some would crash the library, or keep it busy for ever.

What the child survives in time is the same work for the parent. One line of JSON each way.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from model_server.guide.grammar import LIMITS, to_llguidance
from model_server.guide.refusal import Unkept, escaped

LIMIT_S = 0.7
_ROOT = Path(__file__).resolve().parents[2]
_START_S = 60.0
_LOCATE_S = 0.3
_PATIENCE, _LEAST_WAIT_S = 10, 0.01
_STACK_BYTES = 512 * 1024  # less than any thread's that compiles afterwards
_MEMORY_BYTES = 2 << 30

# The library's words for what can't be kept, the keyword, and ours.
_PROBLEMS = (
    ("oneOf", "oneOf", "what tells its alternatives apart can't be seen; use anyOf"),
    ("patternProperty", "patternProperties", "two patterns may match the same name"),
    ("lookaround", "pattern", "^ and $ may stand at its ends only"),
    ("regex parse", "pattern", "can't be read as a regular expression"),
    ("invalid regex", "pattern", "can't be read as a regular expression"),
    ("min/maxProperties", "minProperties", "and maxProperties need all properties required"),
    ("Regex is empty", "pattern", "no string meets all that is asked"),
    ("float range", "minimum", "no grammar is known for this range"),
    ("too many digits", "multipleOf", "has too many digits"),
    ("NoExtension", "", "nothing can be valid here"),
    ("Unsatisfiable", "", "nothing can be valid here"),
    ("too complex", "", "is too complex"),
    ("TooComplex", "", "is too complex"),
    ("too large", "", "is too large"),
    ("panic:", "", "is more than the grammar library can do"),
)
_OUR_NAME = re.compile(r"[\w:/-]*#/\$defs/\w+")


class Trial:
    """A child, started when it is first needed, and anew when it ended. For one thread."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self.has_answered = False

    def problem(self, kind: str, value: Any) -> str:
        """Why this can't be compiled; empty when it can. `has_answered` afterwards: it is the
        child that says so; else it might say something else when it is asked again.
        """
        self.has_answered = False
        try:
            found = _ask(self._ready(), [kind, value], self._limit_s)
            self.has_answered = True
            return found
        except TimeoutError:
            problem = f"{kind}: takes more than {self._limit_s} s to prepare; make it smaller"
        except EOFError:
            problem = f"{kind}: is nested too deeply, or too large"
        self.close()
        self._child = _start()  # the next question needn't wait for it
        return problem

    def _ready(self) -> subprocess.Popen[bytes]:
        self._child = self._child or _start()
        if not self._is_ready:
            _read(self._child, _START_S)
            self._is_ready = True
        return self._child

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child, self._is_ready = None, False


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def _ask(child: subprocess.Popen[bytes], question: object, limit_s: float) -> str:
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(question).encode() + b"\n")
    except BrokenPipeError:
        raise EOFError from None
    return str(json.loads(_read(child, limit_s)))


def _read(child: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The child's next line. Raises EOFError, or TimeoutError once the child has computed for so
    long: others may want the processors, too.
    """
    assert child.stdout is not None
    line, begun_s = b"", _computed_s(child.pid)
    deadline = time.monotonic() + max(limit_s, min(_PATIENCE * limit_s, _START_S))
    while not line.endswith(b"\n"):
        left_s = limit_s - (_computed_s(child.pid) - begun_s)
        if left_s <= 0 or time.monotonic() > deadline:
            raise TimeoutError
        if not select.select([child.stdout], [], [], max(left_s, _LEAST_WAIT_S))[0]:
            continue
        if not (chunk := os.read(child.stdout.fileno(), 65_536)):
            raise EOFError
        line += chunk
    return line


def _computed_s(pid: int) -> float:
    """Seconds for which the processors worked for a process; of elsewhere than Linux the time."""
    if sys.platform != "linux":
        return time.monotonic()
    return time.clock_gettime(~pid << 3 | 2)  # the kernel's number for that clock


def problem_of(kind: str, value: Any) -> str:
    """What the child answers."""
    try:
        found = _compile(kind, value)
    except Unkept as error:
        return f"{kind}: {error}"
    if not found:
        return ""
    keyword, problem = _in_words(found)
    if kind != "json_schema":
        return f"{kind}: {problem}"
    return f"{kind}: {Unkept(keyword or 'schema', problem, _locate(value, found))}"


def _compile(kind: str, value: Any) -> str:
    """The library's problem with it; empty when there is none. Raises Unkept."""
    matcher = LLMatcher(byte_tokenizer(), to_llguidance(kind, value), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error()).strip()


def _in_words(found: str) -> tuple[str, str]:
    """The keyword and what is wrong with it."""
    for needle, keyword, sentence in _PROBLEMS:
        if needle in found:
            return keyword, sentence
    return "", _OUR_NAME.sub("a reference", found.splitlines()[0])[:200]


def _locate(schema: Any, problem: str) -> str:
    """JSON pointer to the smallest part that has the problem by itself."""
    deadline, path = time.monotonic() + _LOCATE_S, ""
    defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    part = schema
    while True:
        for name, inner in _parts(part):
            try:
                same = _compile("json_schema", {**defs, **inner}) == problem
            except Unkept:
                same = False
            if time.monotonic() > deadline:
                return path
            if same:
                part, path = inner, f"{path}/{name}"
                break
        else:
            return path


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for keyword, value in schema.items():
        if keyword in ("items", "additionalProperties", "additionalItems"):
            yield from ((keyword, each) for each in [value] if isinstance(each, dict))
        if keyword in ("properties", "patternProperties", "$defs", "definitions"):
            for name, each in value.items():
                if isinstance(each, dict):
                    yield f"{keyword}/{escaped(name)}", each
        if keyword in ("items", "prefixItems", "allOf", "anyOf", "oneOf"):
            for i, each in enumerate(value if isinstance(value, list) else ()):
                if isinstance(each, dict):
                    yield f"{keyword}/{i}", each


class Bytes:
    """The smallest vocabulary: what a grammar costs to compile hardly depends on it."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def byte_tokenizer() -> LLTokenizer:
    """Of the smallest vocabulary."""
    return LLTokenizer(TokenizerWrapper(Bytes()))


def _serve() -> None:
    with suppress(ValueError, OSError):  # not every system has these limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    byte_tokenizer()
    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(problem_of(*json.loads(line))), flush=True)


if __name__ == "__main__":
    threading.stack_size(_STACK_BYTES)
    serving = threading.Thread(target=_serve)
    serving.start()
    serving.join()
