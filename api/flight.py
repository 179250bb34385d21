"""One batch on its way to one model server: shared transport, separate fates."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from api.errors import GatewayError, ModelServerBusy, Refused
from api.generation import Generation
from model_server.contract.protocol import Accepted, Batch, Done, Event, Failed


class Flight:
    """Fans a batch's events out to its requests, and notices when they leave."""

    def __init__(
        self,
        batch_id: str,
        generations: Sequence[Generation],
        on_cancel: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.batch = Batch(id=batch_id, requests=[each.request for each in generations])
        self.task: asyncio.Task[None] | None = None
        self._unfinished = {each.request.id: each for each in generations}
        self._unacknowledged = set(self._unfinished)
        self._on_cancel = on_cancel
        self._on_change = on_change
        for each in generations:
            each.ended.add_done_callback(partial(self._ended, each.request.id))

    @property
    def acknowledged(self) -> bool:
        return not self._unacknowledged

    @property
    def num_unfinished(self) -> int:
        return sum(not each.ended.done() for each in self._unfinished.values())

    def deliver(self, events: Iterable[Event], model_id: str) -> None:
        """Give events that came together to the requests they belong to."""
        of_each = defaultdict[str, list[Event]](list)
        for event in events:
            of_each[event.id].append(event)
        for request_id, own in of_each.items():
            generation = self._unfinished.get(request_id)
            if generation is not None and not generation.ended.done():
                self._deliver(generation, own, model_id)
            elif isinstance(own[0], Accepted):
                self._on_cancel(request_id)  # left before the model server knew of it

    def _deliver(self, generation: Generation, events: list[Event], model_id: str) -> None:
        last = events[-1]
        failed = isinstance(last, Failed)
        if delivered := events[:-1] if failed else events:
            generation.deliver(delivered, model_id)
        if isinstance(events[0], Accepted):
            self._acknowledge(last.id)
        if isinstance(last, Failed):
            generation.end(_failure(last))
        elif isinstance(last, Done):
            generation.end()

    def end(self, error: GatewayError) -> None:
        """Nothing more will come: whatever is unfinished ends with this error."""
        for generation in self._unfinished.values():
            generation.end(error)

    def _ended(self, request_id: str, ended: asyncio.Future[GatewayError | None]) -> None:
        del self._unfinished[request_id]
        if ended.cancelled():
            self._leave(request_id)
        self._acknowledge(request_id)
        self._on_change()

    def _leave(self, request_id: str) -> None:
        if not self._unfinished and self.task is not None:
            self.task.cancel()  # closing the connection cancels what is left of the batch
        elif request_id not in self._unacknowledged:
            self._on_cancel(request_id)

    def _acknowledge(self, request_id: str) -> None:
        self._unacknowledged.discard(request_id)
        if self.acknowledged:
            self._on_change()


def _failure(event: Failed) -> GatewayError:
    if event.status == 503:
        return ModelServerBusy(event.message)
    return Refused(event.status, event.code, event.message, event.param)
