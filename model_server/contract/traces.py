"""Where OpenTelemetry's spans go: to the OTLP endpoint that the environment names, or nowhere.

Without one neither the SDK for spans nor an exporter is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TracesMissing(Exception):
    """A sentence that names the variable, and what to install."""


def start(service: str) -> trace.TracerProvider | None:
    """A provider that exports, or None where no endpoint is set. Sampler, headers, timeouts and the
    rest of the standard variables are the SDK's to honour; `service` is the name without one.

    Raises TracesMissing.
    """
    endpoint = _endpoint(os.environ)
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        how = "install requirements/traces.txt (installed: the extra `traces`), or unset it"
        raise TracesMissing(f"{endpoint}: OpenTelemetry's SDK is missing; {how}.") from None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _log_ids()
    return provider


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """The variable that asks for traces, unless others forbid them."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return next((name for name in ENDPOINTS if environment.get(name)), None)


def _log_ids() -> None:
    """Give each log record the ids of the span that is active where it is logged."""
    make = logging.getLogRecordFactory()

    def with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id = trace.format_trace_id(context.trace_id)
            record.span_id = trace.format_span_id(context.span_id)
        return record

    logging.setLogRecordFactory(with_ids)
