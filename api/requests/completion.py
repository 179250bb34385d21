"""Body of /v1/completions: text or token ids in, a continuation out."""

from __future__ import annotations

from pydantic import Field, StrictBool, model_validator

from api.errors import InvalidRequest
from api.requests.body import Source
from api.requests.openai import OpenAIBody
from api.requests.prompts import Prompt, parse_prompts
from api.requests.values import Int, MaxTokens, NumLogprobs
from model_server.contract.protocol import MAX_LOGPROBS, Info


class CompletionBody(OpenAIBody):
    prompt: Prompt
    parse_special: StrictBool = Field(
        True, description="Texts of special tokens in `prompt` become these tokens."
    )
    max_tokens: MaxTokens = Field(
        16, ge=1, description="Longest answer; -1: all there is room for."
    )
    best_of: Int | None = Field(None, description="Only the same as n.")
    logprobs: NumLogprobs = Field(
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
        return parse_prompts(self.prompt, info, parse_special=self.parse_special)

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _logprobs(self) -> int | None:
        return self.logprobs
