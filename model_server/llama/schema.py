"""JSON schemas to GBNF, by llama-cpp-python's converter within bounds."""

from __future__ import annotations

import json
import re
from typing import Any

from llama_cpp.llama_grammar import SchemaConverter

from model_server.errors import GrammarRefused
from model_server.llama.grammar import check_grammar
from model_server.protocol import MAX_GRAMMAR_BYTES

_MAX_COUNT = 180  # each optional item is one bracket deeper in the converter's GBNF
_MAX_VISITS = 5_000
_PATTERN_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{([^}]*)\}", re.DOTALL)


def schema_to_gbnf(schema: dict[str, Any]) -> str:
    """GBNF for a JSON schema, by llama-cpp-python's converter. Raises GrammarRefused."""
    try:
        text = json.dumps(schema)
        if len(text) > MAX_GRAMMAR_BYTES:
            raise ValueError(f"it has {len(text)} bytes, at most {MAX_GRAMMAR_BYTES}")
        gbnf = _Converter().convert(json.loads(text))
        check_grammar(gbnf)
    except Exception as error:  # it raises anything, AssertionError included
        problem = f"json_schema: can't be converted ({type(error).__name__}: {error})"
        raise GrammarRefused(problem[:500], "json_schema") from None
    return gbnf


class _Converter(SchemaConverter):
    """llama-cpp-python's, with bounds on what it follows and what it writes."""

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)  # type: ignore[no-untyped-call]
        self._num_visits = 0
        self._num_chars = 0

    def convert(self, schema: Any) -> str:
        if "$ref" in schema:  # beside a $ref nothing else is looked at, $defs neither
            schema["anyOf"] = [{"$ref": schema.pop("$ref")}]
        self.visit(self.resolve_refs(schema, "schema"), "")
        return str(self.format_grammar())  # type: ignore[no-untyped-call]

    def visit(self, schema: Any, name: str) -> str:
        self._num_visits += 1
        if self._num_visits > _MAX_VISITS:
            raise ValueError(f"more than {_MAX_VISITS} parts")
        for key in ("minItems", "maxItems", "minLength", "maxLength"):
            self._check_count(key, schema.get(key, 0))
        return str(super().visit(schema, name))  # type: ignore[no-untyped-call]

    def _resolve_ref(self, ref: str) -> str:
        name = str(super()._resolve_ref(ref))  # type: ignore[no-untyped-call]
        return re.sub(r"[^A-Za-z0-9-]+", "-", name)  # as _add_rule spells it

    def _visit_pattern(self, pattern: str, name: str) -> str:
        for found in _PATTERN_PARTS.finditer(pattern):
            for number in re.findall(r"\d+", found[1] or ""):
                self._check_count("pattern", int(number[:10]))
        if re.search(r"[\]}]", _PATTERN_PARTS.sub("", pattern)):
            raise ValueError("pattern closes a bracket that it didn't open")
        return str(super()._visit_pattern(pattern, name))  # type: ignore[no-untyped-call]

    def _add_rule(self, name: str, rule: str) -> str:
        self._num_chars += len(rule)
        if self._num_chars > 10 * MAX_GRAMMAR_BYTES:
            raise ValueError("its grammar gets too long")
        return str(super()._add_rule(name, rule))  # type: ignore[no-untyped-call]

    @staticmethod
    def _check_count(key: str, count: Any) -> None:
        if not isinstance(count, int) or not 0 <= count <= _MAX_COUNT:
            raise ValueError(f"{key} {count!r} must be 0 to {_MAX_COUNT}")
