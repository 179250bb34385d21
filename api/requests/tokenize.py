"""Bodies of /tokenize and /detokenize, with the fields of vLLM's."""

from __future__ import annotations

from pydantic import Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.body import Body, Source, TokenId, check_tokens
from api.requests.chat import ChatTemplateBody
from api.requests.messages import Messages, parse_messages
from api.requests.prompts import parse_text
from model_server.contract.protocol import Info
from model_server.contract.questions import Detokenize, Tokenize


class TokenizeBody(ChatTemplateBody):
    fates = fields.TOKENIZE

    model: StrictStr = Field("", description="Any name.")
    prompt: StrictStr | None = Field(None, description="A text, or give messages.")
    messages: Messages | None = Field(None, description="A chat.")
    add_special_tokens: StrictBool = Field(
        True, description="Begin as an answer would: with BOS, where the model wants one."
    )
    parse_special: StrictBool | None = Field(
        None, description="Texts of special tokens in `prompt` are these tokens, unless false."
    )
    return_token_strs: StrictBool = Field(
        False, description="Spell the tokens out, as the vocabulary does."
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Give one of prompt and messages.", "prompt")
        given = ChatTemplateBody.model_fields.keys() & self.model_fields_set
        if self.prompt is not None and given:
            name = min(given)
            raise InvalidRequest(f"{name} is for messages, and a prompt is given.", name)
        if self.messages is not None and self.parse_special:
            raise InvalidRequest(
                "parse_special is for prompt: what stands in messages stays text.", "parse_special"
            )
        return self

    def question(self, info: Info) -> Tokenize:
        return Tokenize(
            **self._source(info),
            add_special_tokens=self.add_special_tokens,
            return_token_strs=self.return_token_strs,
        )

    def _source(self, info: Info) -> Source:
        if self.messages is not None:
            messages = parse_messages(self.messages, info)
            return {"messages": messages, "chat": self.chat_options(messages[-1].role)}
        prompt = parse_text(self.prompt or "", "prompt", info)
        return {"prompt": prompt, "parse_special": self.parse_special is not False}


class DetokenizeBody(Body):
    model: StrictStr = Field("", description="Any name.")
    tokens: list[TokenId] = Field(fail_fast=True, description="Ids of the model's tokens.")

    def question(self, info: Info) -> Detokenize:
        limit = info.context_size * info.longest_piece_bytes  # of the longest text that is taken
        if len(self.tokens) > limit:
            message = f"tokens: at most {limit}, got {len(self.tokens)}."
            raise InvalidRequest(message, "tokens", "context_length_exceeded")
        check_tokens("tokens", self.tokens, info)
        return Detokenize(tokens=self.tokens)
