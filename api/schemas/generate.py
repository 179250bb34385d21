"""Body of /generate: one prompt, one answer, every setting by its plain name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictInt, StrictStr, model_validator

from api.errors import InvalidRequest
from api.schemas.body import MAX_TOKENS, GenerationBody, Source, check_schema
from api.schemas.prompts import parse_prompts
from model_server.protocol import Info


class GenerateBody(GenerationBody):
    prompt: StrictStr = Field(description="The text to continue.")
    max_tokens: StrictInt = Field(256, ge=1, le=MAX_TOKENS, description="Longest answer.")
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] | None = Field(
        None, description="JSON schema that the answer keeps to."
    )

    @model_validator(mode="after")
    def _one_grammar(self) -> GenerateBody:
        if self.grammar is not None and self.json_schema is not None:
            raise InvalidRequest("grammar and json_schema exclude each other.", "grammar")
        return self

    def _sources(self, info: Info) -> list[Source]:
        return parse_prompts(self.prompt, info)

    def _max_tokens(self) -> int:
        return self.max_tokens

    def _json_schema(self) -> dict[str, Any] | None:
        return self.json_schema
