"""What the answers of /v1/completions and /v1/chat/completions share; those of /v1/embeddings."""

from __future__ import annotations

import time
from array import array
from base64 import b64decode
from collections.abc import Iterator
from typing import ClassVar, TypeVar

from api.request import Choice, ClientRequest
from api.requests.completion import EmbeddingsBody
from api.requests.generation import OpenAIBody
from api.responses.format import Format, Json
from model_server.contract.protocol import Done, Event, Info, Tokens

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

    def __init__(self, request: ClientRequest, info: Info, body: B) -> None:
        super().__init__(request, info, body)
        self.with_usage = body.include_usage
        self._num_ended = 0
        self._head = {
            "id": f"{self.prefix}-{request.id}",
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": info.model_name,
            "system_fingerprint": info.model_id,
        }
        # The usage is said in a chunk of its own, at the end.
        self.chunk_head = {**self._head, "usage": None} if self.with_usage else self._head

    def chunks(self, choice: Choice, event: Event) -> Iterator[Json]:
        is_shown = isinstance(event, Done) or (
            isinstance(event, Tokens) and bool(event.text or event.logprobs)
        )
        tokens = self.tokens(choice, event, sent=is_shown)
        if not is_shown:
            return
        shown = self.piece(choice, event if isinstance(event, Tokens) else None)
        end = event.finish_reason if isinstance(event, Done) else None
        piece = {"index": choice.index, **shown, "finish_reason": end, **tokens}
        chunk = {**self.chunk_head, "choices": [piece]}
        if end:
            self._num_ended += 1
            if self._num_ended == len(self.request.choices) and not self.with_usage:
                chunk |= self.metrics()
        yield chunk

    def closing(self) -> Iterator[Json]:
        if self.with_usage:
            totals = {"usage": usage(self.request), **self.metrics()}
            yield {**self.chunk_head, "choices": [], **totals}

    def whole(self) -> Json:
        choices = [
            {"index": each.index, **self.answer(each), "finish_reason": each.end.finish_reason}
            for each in self.request.choices
        ]
        totals = {"usage": usage(self.request), **self.metrics()}
        return {**self._head, "object": self.whole_object, "choices": choices, **totals}

    def piece(self, choice: Choice, said: Tokens | None) -> Json:
        """Words and log probabilities of a choice in a chunk; None: its end."""
        raise NotImplementedError

    def answer(self, choice: Choice) -> Json:
        """And in the whole answer."""
        raise NotImplementedError


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
