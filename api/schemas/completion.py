"""Body of /v1/completions: text or token ids in, a continuation out."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, StrictInt, model_validator

from api.errors import InvalidRequest
from api.schemas import fields
from api.schemas.body import MAX_TOKENS, Source
from api.schemas.openai import OpenAIBody
from api.schemas.prompts import Prompt, parse_prompts
from model_server.protocol import MAX_LOGPROBS, Info


class CompletionBody(OpenAIBody):
    only: ClassVar[fields.Only] = fields.COMPLETION_ONLY

    prompt: Prompt
    max_tokens: StrictInt = Field(16, ge=1, le=MAX_TOKENS, description="Longest answer.")
    best_of: StrictInt | None = Field(None, description="Only the same as n.")
    logprobs: StrictInt | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report for each token."
    )

    @model_validator(mode="after")
    def _best_of_is_n(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise InvalidRequest(
                f"best_of other than n ({self.n}) is not supported, got {self.best_of}.", "best_of"
            )
        return self

    def _sources(self, info: Info) -> list[Source]:
        return parse_prompts(self.prompt, info)

    def _max_tokens(self) -> int:
        return self.max_tokens

    def _logprobs(self) -> int | None:
        return self.logprobs
