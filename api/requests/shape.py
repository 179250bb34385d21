"""What the answer has to look like, under the names of OpenAI, llama-server and vLLM."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    model_validator,
)

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.body import Body, GenerationBody
from api.requests.values import bounded, check_bytes

ANY_OBJECT = {"type": "object"}


def _check_choices(choices: list[str]) -> list[str]:
    check_bytes("".join(choices))
    return choices


def _parsed(schema: object) -> object:
    """vLLM takes a schema as text, too."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


Schema = Annotated[dict[str, Any], AfterValidator(bounded)]
SchemaOrText = Annotated[
    dict[str, Any],
    BeforeValidator(_parsed, json_schema_input_type=dict[str, Any] | str),
    AfterValidator(bounded),
]
Grammar = Annotated[str, Field(strict=True, min_length=1), AfterValidator(check_bytes)]
Choice = Annotated[str, Field(strict=True, min_length=1)]
Choices = Annotated[
    list[Choice], Field(min_length=1, fail_fast=True), AfterValidator(_check_choices)
]


class JsonSchemaFormat(Body):
    fates = fields.SCHEMA
    place = "response_format.json_schema."

    json_schema: Schema = Field(alias="schema")


class ResponseFormat(Body):
    place = "response_format."

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    object_schema: Schema | None = Field(
        None, alias="schema", description="llama-server's: of a json_object."
    )

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and is needed there")
        if self.object_schema is not None and self.type != "json_object":
            raise ValueError("schema belongs to type json_object")
        return self

    def schema_of_answer(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return (self.object_schema or ANY_OBJECT) if self.type == "json_object" else None


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    fates = fields.STRUCTURED
    place = "structured_outputs."

    json_: SchemaOrText | None = Field(None, alias="json")
    regex: Grammar | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: StrictBool = False

    @property
    def object_schema(self) -> dict[str, Any] | None:
        return ANY_OBJECT if self.json_object else None


class ShapedBody(GenerationBody):
    """At most one of all these fields shapes the answer."""

    json_schema: Schema | None = Field(None, description="JSON schema that the answer keeps to.")
    grammar: Grammar | None = Field(
        None, description="GBNF grammar of the answer, whose root rule is `root`, or a Lark one."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="vLLM's: an object with json, regex, choice or grammar."
    )
    guided_json: SchemaOrText | None = Field(None, description="vLLM's older json_schema.")
    guided_regex: Grammar | None = Field(None, description="Regular expression of the answer.")
    guided_choice: Choices | None = Field(None, description="The answer is one of these texts.")
    guided_grammar: Grammar | None = Field(None, description="vLLM's older grammar.")

    @model_validator(mode="after")
    def _one_shape(self) -> ShapedBody:
        given = [name for name, _, value in self._shapes() if value is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{given[0]} and {given[1]} exclude each other.", given[0])
        return self

    def _shape(self) -> dict[str, Any]:
        return {kind: value for _, kind, value in self._shapes() if value is not None}

    def _shapes(self) -> list[tuple[str, str, Any]]:
        """Name of each field, the wire's name of what it holds, and its value."""
        vllm = self.structured_outputs or StructuredOutputs()
        return [
            ("json_schema", "json_schema", self.json_schema),
            ("grammar", "grammar", self.grammar),
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choices", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
            ("structured_outputs.json", "json_schema", vllm.json_),
            ("structured_outputs.regex", "regex", vllm.regex),
            ("structured_outputs.choice", "choices", vllm.choice),
            ("structured_outputs.grammar", "grammar", vllm.grammar),
            ("structured_outputs.json_object", "json_schema", vllm.object_schema),
        ]
