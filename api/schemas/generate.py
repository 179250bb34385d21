"""Body of /generate: one prompt, one answer, every setting by its plain name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.schemas.body import GenerationBody, Source, check_schema
from api.schemas.prompts import parse_prompts
from api.schemas.values import MaxTokens
from model_server.protocol import Info


class GenerateBody(GenerationBody):
    prompt: StrictStr = Field(description="The text to continue.")
    parse_special: StrictBool = Field(
        True, description="Texts of special tokens in `prompt` become these tokens."
    )
    max_tokens: MaxTokens = Field(
        256, ge=1, description="Longest answer; -1: all there is room for."
    )
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] | None = Field(
        None, description="JSON schema that the answer keeps to."
    )

    @model_validator(mode="after")
    def _one_grammar(self) -> GenerateBody:
        if self.grammar is not None and self.json_schema is not None:
            raise InvalidRequest("grammar and json_schema exclude each other.", "grammar")
        return self

    def _sources(self, info: Info) -> list[Source]:
        return parse_prompts(self.prompt, info, parse_special=self.parse_special)

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _json_schema(self) -> dict[str, Any] | None:
        return self.json_schema
