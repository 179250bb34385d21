"""GBNF grammars, refused where llama.cpp would not survive them.

llama.cpp's parser recurses, writes repetitions out and follows every way from rule to rule, so a
line of GBNF can end the process or keep it busy for ever. Here a grammar is read once, flatly, and
measured before llama.cpp sees it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NoReturn

from model_server.errors import GrammarRefused
from model_server.protocol import MAX_GRAMMAR_BYTES

_MAX_NESTING = 200
_MAX_REPEATS = 2_000  # llama.cpp's MAX_REPETITION_THRESHOLD
_MAX_ELEMENTS = 200_000
_MAX_WAYS = 1_000  # to one character, through the rules: a token's cost may grow with their cube

_TOKEN = re.compile(
    r"""(?P<skip>[ \t]+|\#[^\r\n]*) | (?P<newline>[\r\n])
      | (?P<rule>[A-Za-z0-9-]+[ \t]*::=) | (?P<name>[A-Za-z0-9-]+)
      | (?P<terminal>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|!?<[^>]*>|\.)
      | (?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
      | (?P<open>\() | (?P<close>\)) | (?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_BOUNDS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_NO_CHARACTERS = ('""', "[]", "[^]")


def check_grammar(text: str) -> None:
    """Refuse what llama.cpp's grammar code doesn't survive. Raises GrammarRefused."""
    num_bytes = len(text.encode())
    if num_bytes > MAX_GRAMMAR_BYTES:
        _refuse(f"has {num_bytes} bytes, at most {MAX_GRAMMAR_BYTES}")
    rules = _Reader(text).read()
    empty = _may_be_empty(rules)
    _refuse_many_ways(rules, empty, _count_ways(rules, empty))


# A rule is a list of alternatives, an alternative a list of elements: the index of a rule, or
# minus the number of characters that a literal stands for.
_Alternative = list[int]
_Rule = list[_Alternative]


@dataclass
class _Group:
    """A rule or a bracket that is being read; `last` is where its latest item begins."""

    index: int
    alternatives: _Rule = field(default_factory=lambda: [[]])
    last: int = 0

    def add(self, *elements: int) -> None:
        self.last = len(self.alternatives[-1])
        self.alternatives[-1].extend(elements)


class _Reader:
    """Reads GBNF as llama.cpp does, repetitions written out, without its recursion."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._rules: list[_Rule] = []
        self._names: dict[str, int] = {}
        self._groups: list[_Group] = []
        self._num_elements = 0

    def read(self) -> list[_Rule]:
        joined = False  # after `::=` and `|` a rule goes on in the next line
        for kind, token in self._tokens():
            if kind == "newline" and len(self._groups) == 1 and not joined:
                self._end_group()
            if kind in ("skip", "newline"):
                continue
            if (kind == "rule") == bool(self._groups):
                _refuse(f"{token!r} is out of place")
            self._take(kind, token)
            joined = kind in ("rule", "or")
        if len(self._groups) > 1:
            _refuse("a bracket is not closed")
        if self._groups:
            self._end_group()
        missing = [name for name, index in self._names.items() if not self._rules[index]]
        if missing or "root" not in self._names:
            _refuse(f"there is no rule {missing[0] if missing else 'root'!r}")
        return self._rules

    def _tokens(self) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                line = self._text.count("\n", 0, at) + 1
                _refuse(f"line {line} can't be read at {self._text[at : at + 20]!r}")
            yield str(found.lastgroup), found.group()
            at = found.end()

    def _take(self, kind: str, token: str) -> None:
        if kind == "rule":
            self._groups.append(_Group(self._named(token[:-3].strip())))
        elif kind == "open":
            if len(self._groups) > _MAX_NESTING:
                _refuse(f"brackets nest {self._depth()} deep, at most {_MAX_NESTING}")
            self._groups.append(_Group(self._new_rule()))
        elif kind == "close":
            if len(self._groups) == 1:
                _refuse("a bracket is closed that was not opened")
            index = self._end_group()
            self._groups[-1].add(index)
        elif kind == "or":
            self._groups[-1].alternatives.append([])
            self._groups[-1].last = 0
        elif kind == "repeat":
            self._repeat(self._groups[-1], token)
        else:
            self._count(len(token))
            self._groups[-1].add(*self._elements(kind, token))

    def _depth(self) -> int:
        steps = {"open": 1, "close": -1}
        return max(accumulate(steps.get(kind, 0) for kind, _ in self._tokens()))

    def _elements(self, kind: str, token: str) -> list[int]:
        if kind == "name":
            return [self._named(token)]
        return [] if token in _NO_CHARACTERS else [-len(token)]

    def _repeat(self, group: _Group, token: str) -> None:
        sequence = group.alternatives[-1]
        item = sequence[group.last :]
        low, high = _bounds(token)
        if not item:
            _refuse(f"{token!r} has nothing to repeat")
        copies = low + (1 if high is None else high - low)
        self._count(copies * sum(max(1, -element) for element in item))
        sequence[group.last :] = item * low
        if high is None:
            rest = self._new_rule()
            self._rules[rest] = [[*item, rest], []]
            sequence.append(rest)
            return
        chain: list[int] = []
        for _ in range(high - low):
            rest = self._new_rule()
            self._rules[rest] = [[*item, *chain], []]
            chain = [rest]
        sequence.extend(chain)

    def _end_group(self) -> int:
        group = self._groups.pop()
        self._rules[group.index] = group.alternatives
        return group.index

    def _named(self, name: str) -> int:
        if name not in self._names:
            self._names[name] = self._new_rule()
        return self._names[name]

    def _new_rule(self) -> int:
        self._count(1)
        self._rules.append([])
        return len(self._rules) - 1

    def _count(self, num_elements: int) -> None:
        self._num_elements += num_elements
        if self._num_elements > _MAX_ELEMENTS:
            _refuse(f"with its repetitions written out it has more than {_MAX_ELEMENTS} elements")


def _bounds(token: str) -> tuple[int, int | None]:
    """Fewest and most times of a repetition; None: no limit."""
    if token in _BOUNDS:
        return _BOUNDS[token]
    low_text, comma, high_text = (part.strip() for part in token[1:-1].partition(","))
    low = int(low_text[:10])
    high = None if comma and not high_text else int((high_text or low_text)[:10])
    if max(low, high or 0) > _MAX_REPEATS or (high is not None and high < low):
        _refuse(f"repetition {token[:40]!r}: at most {_MAX_REPEATS} times, the lower number first")
    return low, high


def _may_be_empty(rules: Sequence[_Rule]) -> list[bool]:
    """Whether each rule can stand for no characters at all."""
    empty = [False] * len(rules)
    users: list[list[tuple[int, int]]] = [[] for _ in rules]
    missing: dict[tuple[int, int], int] = {}
    ready: deque[int] = deque()
    for index, rule in enumerate(rules):
        for number, alternative in enumerate(rule):
            missing[index, number] = len(alternative)
            for element in alternative if min(alternative, default=0) >= 0 else ():
                users[element].append((index, number))
            if not alternative:
                ready.append(index)
    while ready:
        found = ready.popleft()
        if empty[found]:
            continue
        empty[found] = True
        for user in users[found]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user[0])
    return empty


def _firsts(index: int, rule: _Rule, empty: Sequence[bool]) -> Iterator[int]:
    """Elements that a rule may begin with."""
    for alternative in rule:
        for i, element in enumerate(alternative):
            # A repetition of what may be empty comes back to itself; llama.cpp gets over that.
            if element != index or i < len(alternative) - 1:
                yield element
            if element < 0 or not empty[element]:
                break


def _count_ways(rules: Sequence[_Rule], empty: Sequence[bool]) -> list[int]:
    """Ways from each rule down to a first character. Refuses left recursion, hidden or not."""
    firsts = [list(_firsts(index, rule, empty)) for index, rule in enumerate(rules)]
    num_before = [0] * len(rules)
    for others in firsts:
        for other in others:
            if other >= 0:
                num_before[other] += 1
    order = [index for index, count in enumerate(num_before) if not count]
    for index in order:
        for other in firsts[index]:
            if other >= 0:
                num_before[other] -= 1
                if not num_before[other]:
                    order.append(other)
    if len(order) < len(rules):
        _refuse("left recursion: a rule begins with itself")
    ways = [1] * len(rules)
    for index in reversed(order):
        total = sum(1 if other < 0 else ways[other] for other in firsts[index])
        ways[index] = min(1 + total, 10**9)
    return ways


def _refuse_many_ways(rules: Sequence[_Rule], empty: Sequence[bool], ways: Sequence[int]) -> None:
    for index, rule in enumerate(rules):
        most = ways[index]
        for alternative in rule:
            following = 0
            for element in reversed(alternative):
                if element < 0:
                    following = 0
                else:
                    following = ways[element] + (following if empty[element] else 0)
                most = max(most, following)
        if most > _MAX_WAYS:
            _refuse(f"more than {_MAX_WAYS} ways through its rules lead to one character")


def _refuse(problem: str) -> NoReturn:
    raise GrammarRefused(f"grammar: {problem[:200]}", "grammar")
