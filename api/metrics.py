"""What the gateway counts, for Prometheus. The suffixes are those of vLLM's dashboards."""

from __future__ import annotations

from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

PREFIX = "medusa_gateway"
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 1, 2.5, 5, 10)
WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.105, 0.15, 0.25, 0.5, 1, 5, 10)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)


class GatewayMetrics:
    """One registry an app, so that two apps in one process never mix their numbers. `shared`: what
    is rendered are the sums over all worker processes.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._shared = shared
        ProcessCollector(registry=self.registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=self.registry)
        counter = partial(Counter, namespace=PREFIX, registry=self.registry)
        gauge = partial(
            Gauge, namespace=PREFIX, registry=self.registry, multiprocess_mode="livesum"
        )
        self.ttft = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", buckets=LATENCY_S
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between two deliveries of tokens.", buckets=GAP_S
        )
        self.e2e = histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", buckets=LATENCY_S
        )
        self.batch_size = histogram("batch_size", "Requests in a batch.", buckets=SIZES)
        self.batch_wait = histogram(
            "request_queue_time_seconds", "A request's wait for its batch to leave.", buckets=WAIT_S
        )
        self.running = gauge("num_requests_running", "Answers in the making.")
        self.waiting = gauge("num_requests_waiting", "Requests being gathered.")
        gauge("workers", "Gateway processes that serve.").set(1)
        ready = "Whether a model server is ready, 1 or 0."
        self.server_ready = gauge(
            "model_server_ready", ready, ["server"], multiprocess_mode="livemax"
        )
        outstanding = "Requests that a model server has not finished."
        self.server_requests = gauge("model_server_requests", outstanding, ["server"])
        by_status = "HTTP requests by status; 499: the client left before."
        self.http_requests = counter("http_requests", by_status, ["status"])
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished answers.")
        self.generation_tokens = counter("generation_tokens", "Tokens delivered.")
        by_outcome = "Answers by how they ended: done, failed, disconnected."
        self.requests = counter("requests", by_outcome, ["outcome"])
        self.stream_failures = counter("stream_failures", "Failed streams by status.", ["status"])
        self.rejections = counter("rejections", "Requests refused, by reason.", ["reason"])
        by_key = "Requests beyond a budget, by key and limit."
        self.rate_limited = counter("rate_limited", by_key, ["key", "limit"])
        self.unchecked = counter("rate_limit_unchecked", "Let in while RATE_LIMIT_STORAGE is away.")
        self.retries = counter("retries", "Requests sent once more, by reason.", ["reason"])
        self.resumes = counter("resumes", "Answers continued behind delivered tokens.")
        self.disconnects = counter("disconnects", "Clients that left before the end.")

    def forget_server(self, url: str) -> None:
        """Show a model server no more; files that workers share keep it, not ready and idle."""
        for gauge in (self.server_ready, self.server_requests):
            if self._shared:
                gauge.labels(url).set(0)
            else:
                gauge.remove(url)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        if self._shared:
            return generate_latest(MultiProcessCollector(None))  # type: ignore[no-untyped-call]
        return generate_latest(self.registry)
