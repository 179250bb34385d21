"""One batch on its way to one model server: shared transport, separate fates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from api.errors import GatewayError, ModelServerBusy, Refused
from api.generation import Generation
from model_server.protocol import Accepted, Batch, Done, Event, Failed


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

    def deliver(self, event: Event, model_id: str) -> None:
        """Give an event to the request it belongs to."""
        generation = self._unfinished.get(event.id)
        if generation is None or generation.ended.done():
            if isinstance(event, Accepted):
                self._on_cancel(event.id)  # left before the model server knew of it
            return
        if isinstance(event, Failed):
            generation.end(_failure(event))
            return
        generation.deliver(event, model_id)
        if isinstance(event, Accepted):
            self._acknowledge(event.id)
        elif isinstance(event, Done):
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
