"""Who may come in: whoever is turned away is so before a byte of the body is read."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address, ip_network

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.admission.keys import Keys
from api.admission.rates import Admission, Rates
from api.errors import GatewayError, ShuttingDown, error_response
from api.gateway import Gateway
from api.http.paths import MARKDOWN


class AdmissionControl:
    """Shutdown, permits, key, rates, in this order.

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
            scope["method"] in ("GET", "OPTIONS") and not scope["path"].startswith("/v1/")
        ):
            await self._app(scope, receive, send)
            return
        costs = scope["path"] != MARKDOWN
        admission = scope["state"]["admission"] = Admission()
        try:
            if costs and scope["method"] == "POST":
                if self._gateway.draining:
                    raise ShuttingDown
                with self._gateway.permits.taken(1):
                    pass  # one is left; how many it needs is not known yet
            if self._keys or self._rates.limits:
                admission.caller = self._caller(scope)
            if costs and self._rates.limits:
                # A body whose length nobody tells is charged when it has been read.
                length = Headers(scope=scope).get("content-length", 0)
                await self._rates.admit(admission, int(length) if scope["method"] == "POST" else 0)
        except GatewayError as error:
            response = await error_response(Request(scope), error)
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await self._rates.settle(admission)

    def _caller(self, scope: Scope) -> str:
        """Its name for its budgets: the key's, or without keys the address, of IPv6 its /64: that
        much one caller has to choose from.
        """
        if self._keys is not None:
            name = self._keys.name_of(Headers(scope=scope).get("authorization", ""))
            scope["state"]["key"] = name
            return f"key {name}"
        host = str(scope["client"][0]) if scope.get("client") else "unknown"
        with suppress(ValueError):
            address = ip_address(host)
            address = getattr(address, "ipv4_mapped", None) or address
            host = str(ip_network((address, 64), strict=False) if address.version == 6 else address)
        return f"address {host}"
