"""Answers of /v1/completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import ClassVar

from api.request import Choice, ClientRequest
from api.requests.completion import CompletionBody
from api.responses.format import Json
from api.responses.openai import OpenAIFormat
from model_server.contract.protocol import Info, PositionLogprobs, TokenLogprob, Tokens


class CompletionFormat(OpenAIFormat[CompletionBody]):
    prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def __init__(self, request: ClientRequest, info: Info, body: CompletionBody) -> None:
        super().__init__(request, info, body)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in request.choices]
        self._num_chars = [0 for _ in request.choices]

    def piece(self, choice: Choice, said: Tokens | None) -> Json:
        if said is None:
            return {"text": "", "logprobs": None}
        return {"text": said.text, "logprobs": self._logprobs(choice.index, said.logprobs or ())}

    def answer(self, choice: Choice) -> Json:
        return {"text": choice.text, "logprobs": self._logprobs(choice.index, choice.logprobs)}

    def _logprobs(self, index: int, positions: Sequence[PositionLogprobs]) -> Json | None:
        if self.body.logprobs is None:
            return None
        return {
            "tokens": [spelled(each) for each in positions],
            "token_logprobs": [each.logprob for each in positions],
            "top_logprobs": [_top(each) for each in positions],
            "text_offset": [self._offset(index, each) for each in positions],
        }

    def _offset(self, index: int, token: PositionLogprobs) -> int:
        """Where the next token's text begins: in the middle of a character, where that does."""
        offset = self._num_chars[index]
        if token.is_shown:
            self._num_chars[index] += len(self._decoders[index].decode(bytes(token.bytes)))
        return offset


def spelled(token: TokenLogprob) -> str:
    """Its text; its bytes as OpenAI writes them where they are no whole characters."""
    raw = bytes(token.bytes)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _top(position: PositionLogprobs) -> dict[str, float]:
    """The most likely tokens and, if it is none of them, the one that was drawn: one entry each,
    by its id where an earlier one, or the one that was drawn, has its text.
    """
    own = spelled(position)
    top: dict[str, float] = {}
    for each in position.top:
        name = spelled(each)
        is_taken = name in top or (name == own and each.id != position.id)
        top[f"token_id:{each.id}" if is_taken else name] = each.logprob
    top.setdefault(own, position.logprob)
    return top
