"""Who may come in: whoever is turned away is so before a byte of the body is read."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.admission.keys import Keys
from api.admission.rates import Admission, Rates
from api.errors import GatewayError, ShuttingDown
from api.gateway import Gateway
from api.http.error_response import error_response
from api.http.paths import MARKDOWN


class AdmissionControl:
    """Shutdown, permits, key, rates, in this order; then the budgets go into the answer's headers.

    Looking is free, what reaches the model is not: open is every GET outside of /v1, so the page,
    the documentation, probes and metrics. What the page shows an answer with needs the key, and
    costs neither permit nor rate: the answer did.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, keys: Keys | None, rates: Rates) -> None:
        self._app = app
        self._gateway = gateway
        self._keys = keys
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (
            scope["method"] in ("GET", "HEAD", "OPTIONS") and not scope["path"].startswith("/v1/")
        ):
            await self._app(scope, receive, send)
            return
        admission = Admission("")
        costs = scope["path"] != MARKDOWN

        async def send_with_budgets(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(admission.headers())
                if self._gateway.draining:
                    headers["connection"] = "close"  # the next request may find another gateway
            await send(message)

        try:
            caller = self._enter(scope)
            if costs:
                admission = await self._rates.admit(caller, _num_bytes(scope))
            admission.check()
        except GatewayError as error:
            refusal = error_response(error, scope, self._gateway.metrics)
            await refusal(scope, receive, send_with_budgets)
            return
        scope["state"]["admission"] = admission
        try:
            await self._app(scope, receive, send_with_budgets)
        finally:
            await self._rates.settle(admission)

    def _enter(self, scope: Scope) -> str:
        """The caller's name for its budgets: the key's, or without keys the address."""
        if scope["method"] == "POST" and scope["path"] != MARKDOWN:
            if self._gateway.draining:
                raise ShuttingDown
            self._gateway.permits.check()
        if self._keys is None:
            return f"address {_network(scope)}"
        name = self._keys.name_of(Headers(scope=scope).get("authorization", ""))
        scope["state"]["key"] = name
        return f"key {name}"


def _num_bytes(scope: Scope) -> int:
    """Of the body; one whose length nobody tells is charged when it has been read."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and scope["method"] == "POST" else 0


def _network(scope: Scope) -> str:
    """The address, of IPv6 its /64: that much one caller has to choose from."""
    host = str(scope["client"][0]) if scope.get("client") else "unknown"
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        return str(getattr(address, "ipv4_mapped", None) or address)
    return host
