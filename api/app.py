"""The FastAPI application: routes, middleware, and the boundary where errors become responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI, Request, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException

from api.admission.control import AdmissionControl
from api.admission.keys import Keys
from api.admission.rates import Rates
from api.config import Settings
from api.errors import GatewayError, error_response
from api.gateway import Gateway
from api.http.access_log import AccessLog
from api.http.body_limit import BodyLimit
from api.http.paths import MARKDOWN, PATHS
from api.metrics import GatewayMetrics
from api.routes import endpoints, ops
from api.routes.document import ANSWERS, DocumentedApp
from api.upstream.pool import Network

# For the Authorize button of /docs; it is AdmissionControl that asks for the key.
BEARER = Security(
    HTTPBearer(auto_error=False, scheme_name="API key", description="An API key of this server.")
)


def create_app(
    settings: Settings,
    *,
    network: Network | None = None,
    tracer_provider: TracerProvider | None = None,
    shutdown: Callable[[Gateway], AbstractContextManager[object]] = nullcontext,
) -> FastAPI:
    """`network`: tests bring their own. `shutdown` is entered as long as the gateway runs."""
    gateway = Gateway(settings, network, tracer_provider)
    keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
    rates = Rates(settings, gateway.metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, GatewayMetrics]]:
        with shutdown(gateway):
            gateway.start()
            try:
                yield {"metrics": gateway.metrics}
            finally:
                await gateway.aclose()
                await rates.aclose()

    app = DocumentedApp(
        title="Medusa gateway",
        description=ANSWERS["description"],
        lifespan=lifespan,
        docs_url=None,  # routes/ops.py's needs no internet
        redoc_url=None,
        redirect_slashes=False,  # to http://, behind a proxy that speaks https
        telemetry=_telemetry(tracer_provider),
        responses={"4XX": {}},  # keeps FastAPI from adding a 422; DocumentedApp drops it
    )
    app.state.rates = rates
    app.state.gateway = gateway
    app.state.body_limit = BodyLimit(settings, gateway.metrics)
    for router in (endpoints.openai, endpoints.plain, endpoints.tokens):
        app.include_router(router, dependencies=[BEARER] if keys else [])
    app.include_router(ops.router)
    app.mount("/static", ops.files)
    app.mount(ops.DOCS_FILES, ops.docs_files)
    # What is added last sees a request first.
    app.add_middleware(AdmissionControl, gateway, keys, rates)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(AccessLog, gateway)
    app.add_exception_handler(HTTPException, _http_error_response)
    app.add_exception_handler(GatewayError, error_response)
    app.add_exception_handler(Exception, error_response)
    return app


def _telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """FastAPI's own span of each request but probes and the page, and nothing else of its."""
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("method") != "POST" or scope.get("path") == MARKDOWN,
    }


async def _http_error_response(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    if error.status_code == 404:
        message += f"; this server has {', '.join(PATHS)}"
    code = error.detail.lower().replace(" ", "_")
    response = await error_response(request, GatewayError(code, message, status=error.status_code))
    response.headers.update(error.headers or {})
    return response
