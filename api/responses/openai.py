"""Answers of /v1/chat/completions and /v1/completions, whole and in chunks; of /v1/embeddings."""

from __future__ import annotations

import codecs
from array import array
from base64 import b64decode
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, TypeVar

from api.request import Choice, ClientRequest
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, EmbeddingsBody
from api.requests.generation import OpenAIBody
from api.responses.format import Format, Json
from model_server.contract.protocol import Info, PositionLogprobs, TokenLogprob, Tokens

B = TypeVar("B", bound=OpenAIBody)


def usage(request: ClientRequest) -> Json:
    """Sums over the choices."""
    prompts = [choice.end for choice in request.prompts]
    num_prompt = sum(done.prompt_tokens for done in prompts)
    num_answer = sum(choice.end.completion_tokens for choice in request.choices)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {"cached_tokens": sum(done.cached_tokens for done in prompts)},
    }


class OpenAIFormat(Format[B]):
    """A chunk for each event with something to show, and one for each choice's end."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    nothing: ClassVar[Json]  # what the chunk of an end says

    _num_ended = 0

    @cached_property
    def head(self) -> Json:
        """Of a chunk. The usage is said in one of its own, at the end."""
        usage = {"usage": None} if self.body.stream_options.include_usage else {}
        return {
            "id": f"{self.prefix}-{self.request.id}",
            "object": self.chunk_object,
            "created": self.created,
            "model": self.info.model_name,
            "system_fingerprint": self.info.model_id,
            **usage,
        }

    def piece(self, choice: Choice, event: Tokens, tokens: Json) -> Json:
        said = self.said(choice, event.text, event.logprobs or ())
        piece = {"index": choice.index, **said, "finish_reason": None, **tokens}
        return {**self.head, "choices": [piece]}

    def end(self, choice: Choice, tokens: Json) -> Iterator[Json]:
        self._num_ended += 1
        is_last = self._num_ended == len(self.request.choices)
        totals = self.metrics() if is_last and "usage" not in self.head else {}
        reason = choice.end.finish_reason
        piece = {"index": choice.index, **self.nothing, "finish_reason": reason, **tokens}
        yield {**self.head, "choices": [piece], **totals}

    def closing(self) -> Iterator[Json]:
        if "usage" in self.head:
            totals = {"usage": usage(self.request), **self.metrics()}
            yield {**self.head, "choices": [], **totals}

    def whole(self) -> Json:
        choices = [
            {"index": each.index, **self.answer(each), "finish_reason": each.end.finish_reason}
            for each in self.request.choices
        ]
        totals = {"usage": usage(self.request), **self.metrics()}
        return {**self.head, "object": self.whole_object, "choices": choices, **totals}

    def said(self, choice: Choice, text: str, positions: Sequence[PositionLogprobs]) -> Json:
        """Words and log probabilities of a choice in a chunk."""
        raise NotImplementedError

    def answer(self, choice: Choice) -> Json:
        """And in the whole answer."""
        return self.said(choice, choice.text, choice.logprobs)


class ChatFormat(OpenAIFormat[ChatBody]):
    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    nothing: ClassVar[Json] = {"delta": {}, "logprobs": None}

    def opening(self) -> Iterator[Json]:
        for choice in self.request.choices:
            delta = {"role": "assistant", "content": "", "refusal": None}
            shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**self.head, "choices": [shown]}

    def said(self, choice: Choice, text: str, positions: Sequence[PositionLogprobs]) -> Json:
        chances = self._logprobs(positions) if positions else None
        return {"delta": {"content": text}, "logprobs": chances}

    def answer(self, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(choice.logprobs)}

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> Json | None:
        return {"content": logprobs(positions), "refusal": None} if self.body.logprobs else None


def logprobs(positions: Sequence[PositionLogprobs]) -> list[Json]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]}
        for each in positions
    ]


def _logprob(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}


class CompletionFormat(OpenAIFormat[CompletionBody]):
    prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"
    nothing: ClassVar[Json] = {"text": "", "logprobs": None}

    def __init__(self, request: ClientRequest, info: Info, body: CompletionBody) -> None:
        super().__init__(request, info, body)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in request.choices]
        self._num_chars = [0 for _ in request.choices]

    def said(self, choice: Choice, text: str, positions: Sequence[PositionLogprobs]) -> Json:
        return {"text": text, "logprobs": self._logprobs(choice.index, positions)}

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


class EmbeddingsFormat(Format[EmbeddingsBody]):
    def whole(self) -> Json:
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": each.index, "embedding": self._vector(each)}
                for each in self.request.choices
            ],
            "model": self.info.model_name,
            "usage": usage(self.request),
        }

    def _vector(self, choice: Choice) -> list[float] | str:
        encoded = choice.end.embedding
        assert encoded is not None, "it was asked for. This is a bug."
        as_text = self.body.encoding_format == "base64"
        return encoded if as_text else array("f", b64decode(encoded)).tolist()
