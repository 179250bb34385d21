"""What OpenAI's completions and chat bodies share, with llama.cpp's samplers beside."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.body import MAX_CHOICES, Body, GenerationBody
from api.requests.shape import ResponseFormat, ShapedBody
from api.requests.values import Int


class StreamOptions(Body):
    fates = fields.STREAM
    place = "stream_options."

    include_usage: StrictBool = Field(False, description="End with a chunk that counts tokens.")


class OpenAIBody(ShapedBody):
    """What completions and chat share beyond sampling."""

    may_be_empty = GenerationBody.may_be_empty | fields.MAY_BE_EMPTY

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
        return self

    def _num_choices(self) -> int:
        return self.n

    def _shapes(self) -> list[tuple[str, str, Any]]:
        form = self.response_format
        schema = None if form is None else form.schema_of_answer()
        return [*super()._shapes(), ("response_format", "json_schema", schema)]
