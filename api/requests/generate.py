"""Body of /generate: one prompt, one answer, every setting by its plain name."""

from __future__ import annotations

from pydantic import Field, StrictBool, StrictStr

from api.requests.body import Source
from api.requests.prompts import parse_prompts
from api.requests.shape import ShapedBody
from api.requests.values import MaxTokens
from model_server.contract.protocol import Info


class GenerateBody(ShapedBody):
    prompt: StrictStr = Field(description="The text to continue.")
    parse_special: StrictBool = Field(
        True, description="Texts of special tokens in `prompt` become these tokens."
    )
    max_tokens: MaxTokens = Field(
        256, ge=1, description="Longest answer; -1: all there is room for."
    )

    def _sources(self, info: Info) -> list[Source]:
        return parse_prompts(self.prompt, info, parse_special=self.parse_special)

    def _max_tokens(self) -> int | None:
        return self.max_tokens
