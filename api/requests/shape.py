"""What the answer has to look like, under the names of OpenAI, llama-server and vLLM."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, model_validator

from api.requests.body import FATES, Body
from api.requests.values import bounded, check_bytes

ANY_OBJECT = {"type": "object"}


def _parsed(schema: object) -> object:
    """vLLM takes a schema as text, too."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
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
    list[Choice],
    Field(min_length=1, fail_fast=True),
    AfterValidator(lambda texts: check_bytes("".join(texts)) and texts),
]


class JsonSchemaFormat(Body):
    fates = FATES["schema"]
    place = "response_format.json_schema."

    json_schema: Schema = Field(alias="schema", description="What the answer keeps to.")


class ResponseFormat(Body):
    place = "response_format."

    type: Literal["text", "json_object", "json_schema"] = Field(description="What comes.")
    json_schema: JsonSchemaFormat | None = Field(None, description="Of type json_schema.")
    object_schema: Schema | None = Field(None, alias="schema", description="Of a json_object.")

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

    fates = FATES["structured"]
    place = "structured_outputs."

    json_: SchemaOrText | None = Field(None, alias="json", description="A JSON schema.")
    regex: Grammar | None = Field(None, description="Of the whole answer.")
    choice: Choices | None = Field(None, description="Texts, one of them.")
    grammar: Grammar | None = Field(None, description="GBNF, or Lark.")
    json_object: StrictBool = Field(False, description="Any JSON object.")
