"""Bodies of /tokenize and /detokenize, with the fields of vLLM's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.schemas import fields
from api.schemas.body import Body, TokenId, check_tokens
from api.schemas.chat import ChatMessage, parse_messages
from api.schemas.prompts import parse_text
from model_server.protocol import Detokenize, Info, Tokenize


class TokenizeBody(Body):
    only: ClassVar[fields.Only] = fields.TOKENIZE_ONLY

    model: StrictStr = Field("", description="Any name.")
    prompt: StrictStr | None = Field(None, description="A text, or give messages.")
    messages: list[ChatMessage] | None = Field(None, min_length=1, description="A chat.")
    add_special_tokens: StrictBool = Field(
        True, description="Begin as an answer would: with BOS, where the model wants one."
    )
    return_token_strs: StrictBool = Field(
        False, description="Spell the tokens out, as the vocabulary does."
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Give one of prompt and messages.", "prompt")
        return self

    def question(self, info: Info) -> Tokenize:
        prompt, messages = self.prompt, self.messages
        return Tokenize(
            prompt=None if prompt is None else parse_text(prompt, "prompt", info),
            messages=None if messages is None else parse_messages(messages, info),
            add_special_tokens=self.add_special_tokens,
            return_token_strs=self.return_token_strs,
        )


class DetokenizeBody(Body):
    model: StrictStr = Field("", description="Any name.")
    tokens: list[TokenId] = Field(description="Ids of the model's tokens.")

    def question(self, info: Info) -> Detokenize:
        check_tokens("tokens", self.tokens, info)
        return Detokenize(tokens=self.tokens)
