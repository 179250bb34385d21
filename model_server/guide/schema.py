"""JSON Schemas that can be kept to the letter, rewritten so that the grammar library does.

The library ignores keywords that it doesn't know, counts a repeated key twice and believes options
inside a schema. So only what is listed here goes through, spelled in one way; all else is refused
by its name and place. What is refused costs an error; what is ignored would break a promise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from model_server.guide.formats import FORMATS, LIBRARY_FORMATS
from model_server.guide.numbers import EXACT, included, number, refuse_inexact
from model_server.guide.pattern import translate, translate_name
from model_server.guide.refusal import Unkept, escaped

Schema = dict[str, Any]

_MAX_DEPTH = 64
_MAX_VISITS = 5_000

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# Anything, but for numbers like 1e999, which parsers read as infinite.
_ANY: Schema = {"$ref": "#/$defs/any"}
_ANYTHING: Schema = {
    "minimum": -EXACT,
    "maximum": EXACT,
    "items": _ANY,
    "additionalProperties": _ANY,
}
_CONTROL = re.compile(r"[\0-\x07\x0b\x0e-\x1f\x7f]")

# They say nothing about what is valid.
_HARMLESS = frozenset(
    {"title", "description", "examples", "example", "default", "deprecated", "readOnly"}
    | {"writeOnly", "$comment", "$schema", "$anchor", "$dynamicAnchor", "$defs", "definitions"}
    | {"discriminator"}
)


def keep(schema: Schema) -> Schema:
    """The same schema as the library is to see it. Raises Unkept."""
    return _Keeper(schema).root()


class _Keeper:
    """One walk; what references point to is collected under names of our own."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._refs: dict[str, str] = {}
        self._defs: dict[str, Schema | bool] = {}
        self._num_visits = 0
        self._is_mixed = False

    def root(self) -> Schema:
        kept = self._keep(self._schema, "")
        if not isinstance(kept, dict):
            raise Unkept("", "must be an object")
        if self._is_mixed and "any" in self._defs:
            self._defs["any"] = True  # the library can't join two schemas without end
        return {**kept, "$defs": self._defs} if self._defs else kept

    def _keep(self, schema: Any, path: str) -> Schema | bool:
        self._num_visits += 1
        if self._num_visits > _MAX_VISITS or path.count("/") > 2 * _MAX_DEPTH:
            limits = f"{_MAX_VISITS} parts, {_MAX_DEPTH} levels"
            raise Unkept("", f"is too large: at most {limits}")
        if isinstance(schema, bool):
            return self._anything() if schema else False
        if not isinstance(schema, dict):
            raise Unkept("", f"{path or '/'} must be a schema, an object or a boolean")
        out: Schema = {}
        for keyword, value in schema.items():
            try:
                self._take(keyword, value, schema, path, out)
            except Unkept as error:
                place = error.path or f"{path}/{escaped(keyword)}"
                raise Unkept(error.keyword or keyword, error.problem, place) from None
        if not out:
            return self._anything()
        self._bound(out)
        return out

    def _bound(self, out: Schema) -> None:
        """Say what may stand where nothing is said."""
        if joined := out.keys() & {"allOf", "anyOf", "oneOf", "$ref"}:
            self._is_mixed |= len(out) > 1 or len(out.get("allOf", "1")) > 1
        is_open = not joined and out.keys().isdisjoint({"enum", "const"})
        types = out.get("type", _TYPES if is_open else ())
        if "number" in types or "integer" in types:
            out.setdefault("minimum", -EXACT)
            out.setdefault("maximum", EXACT)
        for keyword, kind in (("additionalProperties", "object"), ("items", "array")):
            if is_open and kind in types and keyword not in out:
                out[keyword] = self._anything()

    def _anything(self) -> Schema:
        self._defs["any"] = _ANYTHING
        return _ANY

    def _take(self, keyword: str, value: Any, schema: Schema, path: str, out: Schema) -> None:
        if keyword in _HARMLESS or keyword.startswith("x-"):
            return
        if not path and keyword in ("$id", "id"):
            return
        rule = _RULES.get(keyword)
        if rule is None:
            raise Unkept(keyword, "is not supported")
        rule(self, keyword, value, schema, path, out)

    def take_type(self, keyword: str, value: Any, _s: Schema, _p: str, out: Schema) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or any(name not in _TYPES for name in names):
            raise Unkept(keyword, f"must be one of {', '.join(_TYPES)}, or a list of them")
        out[keyword] = value

    def take_data(self, keyword: str, value: Any, _s: Schema, path: str, out: Schema) -> None:
        if keyword == "enum" and not (isinstance(value, list) and value):
            raise Unkept(keyword, "must be a list with at least one value")
        refuse_inexact(keyword, value)
        _refuse_controls(keyword, value)
        out[keyword] = value

    def take_number(self, keyword: str, value: Any, schema: Schema, _p: str, out: Schema) -> None:
        if isinstance(value, bool) and keyword.startswith("exclusive"):  # draft 4
            bound = "minimum" if keyword == "exclusiveMinimum" else "maximum"
            if not value or bound not in schema:
                return
            value = schema[bound]
        given = number(keyword, value)
        if keyword == "multipleOf" and given <= 0:
            raise Unkept(keyword, "must be above 0")
        keyword, given = included(keyword, given)
        closest = {"minimum": max, "maximum": min}.get(keyword, max)
        out[keyword] = closest(given, out.get(keyword, given))

    def take_count(self, keyword: str, value: Any, schema: Schema, _p: str, out: Schema) -> None:
        count = number(keyword, value)
        if count < 0 or count != int(count):
            raise Unkept(keyword, "must be a whole number, 0 or more")
        if keyword == "minProperties" and count > 1 and not _keys_are_known(schema):
            required = schema.get("required")
            if isinstance(required, list) and len(set(map(str, required))) >= count:
                return
            # A text may repeat a key, and then has fewer than it seems.
            problem = "needs additionalProperties false, or so many required ones"
            raise Unkept(keyword, problem)
        out[keyword] = int(count)

    def take_pattern(self, keyword: str, value: Any, _s: Schema, _p: str, out: Schema) -> None:
        if not isinstance(value, str):
            raise Unkept(keyword, "must be a string")
        _also(out, {"pattern": translate(value)})

    def take_format(self, keyword: str, value: Any, _s: Schema, _p: str, out: Schema) -> None:
        if isinstance(value, str) and value in FORMATS:
            _also(out, {"pattern": FORMATS[value]})
        elif isinstance(value, str) and value in LIBRARY_FORMATS:
            _also(out, {"format": value})
        else:
            known = ", ".join(sorted({*FORMATS, *LIBRARY_FORMATS}))
            raise Unkept(keyword, f"{str(value)[:40]!r} is not supported, only {known}")

    def take_schema(self, keyword: str, value: Any, schema: Schema, path: str, out: Schema) -> None:
        if keyword == "additionalItems" and not isinstance(schema.get("items"), list):
            raise Unkept(keyword, "belongs to a list of items")
        if keyword == "items" and isinstance(value, list):  # before 2020-12
            keyword = "prefixItems"
            out[keyword] = self._each(value, f"{path}/items")
            return
        target = "items" if keyword == "additionalItems" else keyword
        out[target] = self._keep(value, f"{path}/{keyword}")

    def take_schemas(self, keyword: str, value: Any, _s: Schema, path: str, out: Schema) -> None:
        if not isinstance(value, list) or not value:
            raise Unkept(keyword, "must be a list of schemas, not empty")
        found = self._each(value, f"{path}/{keyword}")
        out[keyword] = [*out.get(keyword, []), *found]

    def take_named(self, keyword: str, value: Any, _s: Schema, path: str, out: Schema) -> None:
        if not isinstance(value, dict):
            raise Unkept(keyword, "must be an object of schemas")
        _refuse_controls(keyword, list(value))
        spelled = translate_name if keyword == "patternProperties" else str
        names = {name: spelled(name) for name in value}
        if len(set(names.values())) < len(names):
            raise Unkept(keyword, "two of its patterns are the same")
        out[keyword] = {
            names[name]: self._keep(each, f"{path}/{keyword}/{escaped(name)}")
            for name, each in value.items()
        }

    def take_required(self, keyword: str, value: Any, _s: Schema, _p: str, out: Schema) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise Unkept(keyword, "must be a list of names")
        _refuse_controls(keyword, value)
        out[keyword] = list(dict.fromkeys(value))

    def take_unique(self, keyword: str, value: Any, schema: Schema, _p: str, out: Schema) -> None:
        if value is not False and schema.get("maxItems") not in (0, 1):
            raise Unkept(keyword, "is not supported")

    def take_ref(self, keyword: str, value: Any, _s: Schema, _p: str, out: Schema) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise Unkept(keyword, "must point into this schema: #/$defs/NAME")
        if value not in self._refs:
            self._refs[value] = name = f"r{len(self._refs)}"
            self._defs[name] = self._keep(self._resolve(value), value.removeprefix("#"))
        out[keyword] = f"#/$defs/{self._refs[value]}"

    def _resolve(self, ref: str) -> Any:
        found: Any = self._schema
        for part in ref.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unkept("$ref", f"{ref[:100]!r} points to nothing") from None
        return found

    def _each(self, schemas: list[Any], path: str) -> list[Schema | bool]:
        return [self._keep(schema, f"{path}/{i}") for i, schema in enumerate(schemas)]


_Rule = Callable[[_Keeper, str, Any, Schema, str, Schema], None]
_RULES: dict[str, _Rule] = {
    "type": _Keeper.take_type,
    **dict.fromkeys(("enum", "const"), _Keeper.take_data),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        _Keeper.take_number,
    ),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        _Keeper.take_count,
    ),
    "pattern": _Keeper.take_pattern,
    "format": _Keeper.take_format,
    **dict.fromkeys(("items", "additionalItems", "additionalProperties"), _Keeper.take_schema),
    **dict.fromkeys(("prefixItems", "allOf", "anyOf", "oneOf"), _Keeper.take_schemas),
    **dict.fromkeys(("properties", "patternProperties"), _Keeper.take_named),
    "required": _Keeper.take_required,
    "uniqueItems": _Keeper.take_unique,
    "$ref": _Keeper.take_ref,
}


def _also(out: Schema, schema: Schema) -> None:
    """One more condition: a schema has room for one pattern only."""
    if out.keys() & {"pattern", "format"}:
        out.setdefault("allOf", []).append(schema)
    else:
        out |= schema


def _keys_are_known(schema: Schema) -> bool:
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def _refuse_controls(keyword: str, value: Any) -> None:
    """Characters that JSON has no short escape for: the library loses them."""
    if isinstance(value, str) and _CONTROL.search(value):
        raise Unkept(keyword, "control characters are not supported")
    if isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_controls(keyword, each)


def canonical(schema: Schema) -> str:
    """As text. Raises Unkept."""
    try:
        return json.dumps(keep(schema), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise Unkept("", f"is nested deeper than {_MAX_DEPTH} levels") from None
