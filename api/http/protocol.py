"""uvicorn's HTTP/1.1 with bounds on headers, their bytes and the time that they take, and with
answers that reach a client which is still sending.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.errors import GatewayError
from api.metrics import GatewayMetrics

MAX_HEADER_BYTES = 65_536
HEADER_TIMEOUT_S = 30.0
LINGER_S = 1.0
# What is read, and dropped, of a body behind its request's answer; as long as nginx does.
MAX_DROPPED_BYTES = 64 * 1024 * 1024
DROP_TIMEOUT_S = 30.0
TOO_LARGE = GatewayError(
    "headers_too_large", f"The request's headers are larger than {MAX_HEADER_BYTES} bytes."
)
INVALID = GatewayError("invalid_http", "Invalid HTTP request received.")


class BoundedHttp(HttpToolsProtocol):
    """httptools alone takes headers of any size, for as long as they take; here both end."""

    _num_bytes = 0  # received since something was last understood: headers, body or end
    _num_body = 0  # received of the body; once it is answered, of what is dropped
    _refused = False
    _closing = False  # answered for the last time, but the client is still sending
    _repeating = False  # headers that were understood already
    _unanswered: Sequence[RequestResponseCycle] = ()  # a client may send several requests at once

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_alarm(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Each request is told; uvicorn tells the latest one, which may wait for its turn."""
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._num_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(INVALID)
        if self._num_bytes > MAX_HEADER_BYTES:
            self._refuse(TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        """All of it as HTTP/1.1. An `Upgrade` is an offer, which nobody here takes up: stock Java
        clients offer h2c, and send the body behind it.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._go_on()

    def _go_on(self) -> None:
        """Behind the headers of a request, with a parser that has not seen the offer in them: to
        the other one they are the end.
        """
        needed = (b"content-length", b"transfer-encoding", b"expect")
        told = [b"%b: %b\r\n" % each for each in self.headers if each[0] in needed]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._repeating = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(told))
        self._repeating = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._set_alarm(HEADER_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._unset_keepalive_if_required()
        if self._repeating:
            return
        self._num_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            self._refuse(TOO_LARGE)
            raise httptools.HttpParserError("too large")
        if self.transport.is_closing():
            raise httptools.HttpParserError("what comes behind the last request")
        super().on_headers_complete()
        self._unanswered = [*(self._unanswered if self.pipeline else ()), self.cycle]
        self._num_body = 0
        self.cycle.transport = SimpleNamespace(  # type: ignore[assignment]
            write=self.transport.write,
            is_closing=self.transport.is_closing,
            close=partial(self._close, self.cycle),
        )
        if self.scope["http_version"] == "1.0":
            self.cycle.chunked_encoding = False
            self.cycle.send = partial(_unframed, self.cycle)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._num_bytes = 0
        self._num_body += len(body)
        if self.cycle.response_complete and self._num_body > MAX_DROPPED_BYTES:
            self.transport.close()
        super().on_body(body)

    def _close(self, cycle: RequestResponseCycle) -> None:
        """Closing on what the client still sends would take the answer back: so first its end is
        awaited. A client that was to be asked for its body, and was not, sends nothing.
        """
        if not cycle.more_body or (self.expect_100_continue and not self._num_body):
            self.transport.close()
        else:
            self._closing = True
            self.transport.write_eof()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._num_body = 0
            self._set_alarm(DROP_TIMEOUT_S)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the body is still to come
        self._num_bytes = 0
        super().on_message_complete()
        if self._closing:
            self.transport.close()
        elif self.cycle.response_complete:
            self._set_alarm(self.timeout_keep_alive)

    def _refuse(self, error: GatewayError) -> None:
        """The connection's last word. It stays open for a moment, since closing it on what the
        client still sends would take the word back.
        """
        if self._refused:
            return
        if self.transport.is_closing() or self._closing:
            self.transport.close()
            return
        self._refused = True
        metrics: GatewayMetrics = self.app_state["metrics"]
        metrics.rejections.labels(error.code).inc()
        metrics.http_requests.labels(error.status).inc()
        body = json.dumps(error.body).encode()
        head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self._set_alarm(LINGER_S)

    def _set_alarm(self, timeout_s: float) -> None:
        """The connection ends then. There is one alarm, uvicorn's own for idle connections."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(timeout_s, self.transport.close)


async def _unframed(turn: RequestResponseCycle, message: Any) -> None:
    """Send to HTTP/1.0, which knows no chunks: what told no length ends with the connection."""
    turn.expected_content_length = max(turn.expected_content_length, len(message.get("body", b"")))
    await RequestResponseCycle.send(turn, message)
