"""Answers of /generate: the text, what it cost, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

from api.request import Choice
from api.requests.completion import GenerateBody
from api.responses.format import Format, Json
from model_server.contract.protocol import Tokens


class GenerateFormat(Format[GenerateBody]):
    """A stream is {"text"} events with their tokens; the last one says everything else."""

    def piece(self, choice: Choice, event: Tokens, tokens: Json) -> Json:
        return {"text": event.text, **tokens}

    def end(self, choice: Choice, tokens: Json) -> Iterator[Json]:
        yield {"text": "", **tokens, **self._end(choice)}

    def whole(self) -> Json:
        [choice] = self.request.choices
        return {"text": choice.text, **self._end(choice)}

    def _end(self, choice: Choice) -> Json:
        done, carrier = choice.end, choice.carrier
        assert carrier is not None, "an answer was carried by a batch. This is a bug."
        wait_ms = _ms(choice.wait_s)
        return {
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "model": self.info.model_name,
            "timings": {
                "queue_ms": _ms(done.timings.queue_s),
                "batch_wait_ms": wait_ms,
                "prefill_ms": _ms(done.timings.prefill_s),
                "decode_ms": _ms(done.timings.decode_s),
                "total_ms": _ms(time.monotonic() - self.request.started),
            },
            "batch": {"id": carrier.id, "size": carrier.size, "wait_ms": wait_ms},
            **self.metrics(),
        }


def _ms(seconds: float) -> float:
    return round(1_000 * seconds, 1)


class InfillFormat(Format[GenerateBody]):
    """A stream is {"content"} events; the last one has `stop`, and says everything else."""

    says_done: ClassVar[bool] = False

    def piece(self, choice: Choice, event: Tokens, tokens: Json) -> Json:
        ids = tokens.get("token_ids", [])
        return {"index": 0, "content": event.text, "tokens": ids, "stop": False, **tokens}

    def end(self, choice: Choice, tokens: Json) -> Iterator[Json]:
        yield {**self._end(choice, ""), "tokens": tokens.get("token_ids", []), **tokens}

    def whole(self) -> Json:
        [choice] = self.request.choices
        return self._end(choice, choice.text)

    def _end(self, choice: Choice, text: str) -> Json:
        done = choice.end
        word = done.matched_stop if isinstance(done.matched_stop, str) else ""
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "stop": True,
            "model": self.info.model_name,
            "stop_type": "limit" if done.finish_reason == "length" else "word" if word else "eos",
            "stopping_word": word,
            "tokens_predicted": done.completion_tokens,
            "tokens_evaluated": done.prompt_tokens,
            "tokens_cached": done.prompt_tokens + max(done.completion_tokens - 1, 0),
            "truncated": False,
            "timings": {
                "cache_n": done.cached_tokens,
                "prompt_n": done.prompt_tokens - done.cached_tokens,
                "prompt_ms": _ms(done.timings.prefill_s),
                "predicted_n": done.completion_tokens,
                "predicted_ms": _ms(done.timings.decode_s),
            },
        }
