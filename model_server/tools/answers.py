"""Answers of a model that was loaded for a tool: requests in, whole answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from model_server.config import ModelServerSettings
from model_server.contract.protocol import (
    Done,
    Event,
    Failed,
    GenerateRequest,
    PositionLogprobs,
    SpeculationStats,
    Tokens,
)
from model_server.engine.startup import Served, load
from model_server.errors import RequestError
from model_server.medusa import head_file
from model_server.metrics import ModelServerMetrics
from model_server.tools.progress import Progress

TIMEOUT_S = 3_600


@dataclass
class WholeAnswer:
    """What one request was answered. `logprobs` are there if it asked for them."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    speculation: SpeculationStats | None = None


def loaded(settings: ModelServerSettings) -> Served:
    """Load and start it, and show how far that is. Raises StartError."""
    head_file.require_roles(settings.model_path, settings.heads_path)
    with Progress(f"loading {settings.model_path.name}", 1) as progress:
        return load(settings, ModelServerMetrics(), progress)


def answer_all(
    served: Served, requests: Sequence[GenerateRequest]
) -> Iterator[tuple[GenerateRequest, WholeAnswer]]:
    """Run all requests, as many at once as there are slots; each comes out when it is done.

    Raises RequestError for the first that is refused or fails.
    """
    heard: SimpleQueue[list[Event]] = SimpleQueue()
    waiting = {request.id: (request, WholeAnswer()) for request in requests}
    assert len(waiting) == len(requests), "ids must differ. This is a bug."
    for request in requests:
        served.engine.submit(served.intake.make(request), heard.put)
    while waiting:
        for event in heard.get(timeout=TIMEOUT_S):
            if isinstance(event, Tokens):
                answer = waiting[event.id][1]
                answer.tokens += event.ids
                answer.logprobs += event.logprobs or []
            elif isinstance(event, Failed):
                raise RequestError(event.message)
            elif isinstance(event, Done):
                waiting[event.id][1].speculation = event.speculation
                yield waiting.pop(event.id)
