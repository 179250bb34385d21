"""Answers of /v1/responses, whole and as OpenAI's typed events, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from api.request import Choice
from api.requests.chat import ResponsesBody
from api.responses.format import Format, Json
from api.responses.openai import logprobs
from model_server.contract.protocol import Done, PositionLogprobs, Tokens


class ResponsesFormat(Format[ResponsesBody]):
    says_done: ClassVar[bool] = False

    _num_sent = 0

    def opening(self) -> Iterator[Json]:
        for step in ("created", "in_progress"):
            yield self._event(f"response.{step}", response=self._response("in_progress", []))
        message = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=message)
        yield self._event("response.content_part.added", **self._place(), part=self._part("", []))

    def piece(self, choice: Choice, event: Tokens, tokens: Json) -> Json:
        positions = event.logprobs or ()
        choice.logprobs += positions
        told = {"delta": event.text, "logprobs": logprobs(positions)}
        return self._event("response.output_text.delta", **self._place(), **told, **tokens)

    def whole(self) -> Json:
        [choice] = self.request.choices
        return self._finished(choice.end, self._part(choice.text, choice.logprobs))

    def failure(self, body: Json) -> Json:
        error = body["error"]
        told = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **told, error=error)

    def end(self, choice: Choice, tokens: Json) -> Iterator[Json]:
        part = self._part(choice.text, choice.logprobs)
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place(), **told, **tokens)
        yield self._event("response.content_part.done", **self._place(), part=part)
        response = self._finished(choice.end, part)
        [message] = response["output"]
        yield self._event("response.output_item.done", output_index=0, item=message)
        yield self._event(f"response.{response['status']}", response=response)

    def _finished(self, done: Done, part: Json) -> dict[str, Any]:
        status = "completed" if done.finish_reason == "stop" else "incomplete"
        usage = {
            "input_tokens": done.prompt_tokens,
            "input_tokens_details": {"cached_tokens": done.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": done.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": done.prompt_tokens + done.completion_tokens,
        }
        response = self._response(status, [self._message(status, [part])])
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return {**response, "usage": usage, **self.metrics()}

    def _response(self, status: str, output: Sequence[Json]) -> dict[str, Any]:
        body, sampling = self.body, self.request.choices[0].request.sampling
        return {
            "id": f"resp_{self.request.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self.info.model_name,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_unset=True)},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _message(self, status: str, content: list[Json]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": f"msg_{self.request.id}",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str, positions: Sequence[PositionLogprobs]) -> Json:
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": logprobs(positions),
        }

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self.request.id}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Json:
        self._num_sent += 1
        return {"type": kind, "sequence_number": self._num_sent - 1, **fields}
