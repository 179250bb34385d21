"""What the answers of /v1/completions and /v1/chat/completions share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from typing_extensions import TypedDict

from api.request import Choice, ClientRequest
from api.requests.openai import OpenAIBody
from api.responses.format import Format, Json
from model_server.contract.protocol import Done, Event, Info, Tokens


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


def usage(choices: Sequence[Choice]) -> Usage:
    """Sums over the choices; a prompt counts once, however many choices it has."""
    prompts = [each.end for each in choices if each.request.sampling.choice == 0]
    num_prompt = sum(done.prompt_tokens for done in prompts)
    num_answer = sum(each.end.completion_tokens for each in choices)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {"cached_tokens": sum(done.cached_tokens for done in prompts)},
    }


class OpenAIFormat(Format):
    """A chunk for each event with something to show, and one for each choice's end."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, request: ClientRequest, info: Info, body: OpenAIBody) -> None:
        super().__init__(request, info)
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
        chunk = {**self.chunk_head, "choices": [{**self.piece(choice, event), **tokens}]}
        if isinstance(event, Done):
            self._num_ended += 1
            if self._num_ended == len(self.request.choices) and not self.with_usage:
                chunk |= self.metrics()
        yield chunk

    def closing(self) -> Iterator[Json]:
        if self.with_usage:
            totals = {"usage": usage(self.request.choices), **self.metrics()}
            yield {**self.chunk_head, "choices": [], **totals}

    def whole(self) -> Json:
        choices = [self.answer(each) for each in self.request.choices]
        totals = {"usage": usage(self.request.choices), **self.metrics()}
        return {**self._head, "object": self.whole_object, "choices": choices, **totals}

    def piece(self, choice: Choice, event: Event) -> dict[str, Any]:
        """A choice of a chunk: what an event shows of it."""
        raise NotImplementedError

    def answer(self, choice: Choice) -> Json:
        """A choice of the whole answer."""
        raise NotImplementedError
