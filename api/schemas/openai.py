"""What OpenAI's completions and chat bodies share, with llama.cpp's samplers beside."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.schemas import fields
from api.schemas.body import MAX_CHOICES, Body, GenerationBody, check_schema
from api.schemas.values import Int


class StreamOptions(Body):
    only: ClassVar[fields.Only] = fields.STREAM_ONLY
    place: ClassVar[str] = "stream_options."

    include_usage: StrictBool = Field(False, description="End with a chunk that counts tokens.")


class JsonSchemaFormat(Body):
    harmless: ClassVar[frozenset[str]] = fields.SCHEMA_HARMLESS
    place: ClassVar[str] = "response_format.json_schema."

    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] = Field(alias="schema")


class ResponseFormat(Body):
    place: ClassVar[str] = "response_format."

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and is needed there")
        return self

    def schema_of_answer(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return {"type": "object"} if self.type == "json_object" else None


class OpenAIBody(GenerationBody):
    """What completions and chat share beyond sampling."""

    harmless: ClassVar[frozenset[str]] = fields.HARMLESS
    may_be_empty: ClassVar[frozenset[str]] = GenerationBody.may_be_empty | fields.MAY_BE_EMPTY

    model: StrictStr = Field("", description="Any name; the answer tells the model served.")
    n: Int = Field(1, ge=1, le=MAX_CHOICES, description="Choices for each prompt.")
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = Field(
        None, description="text, json_object, or json_schema with a schema."
    )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _fields_that_belong_together(self) -> OpenAIBody:
        if self.include_usage and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
        if self.grammar is not None and self._json_schema() is not None:
            raise InvalidRequest("grammar and response_format exclude each other.", "grammar")
        return self

    def _num_choices(self) -> int:
        return self.n

    def _json_schema(self) -> dict[str, Any] | None:
        return None if self.response_format is None else self.response_format.schema_of_answer()
