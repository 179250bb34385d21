"""What the gateway counts, for Prometheus. The suffixes are those of vLLM's dashboards."""

from __future__ import annotations

from typing import Literal

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


class GatewayMetrics:
    """One registry an app, so that two apps in one process never mix their numbers. `shared`: what
    is rendered are the sums over all worker processes.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._shared = shared
        ProcessCollector(registry=self.registry)
        self._latencies()
        self._batches()
        self._servers()
        self._totals()

    def _latencies(self) -> None:
        self.ttft = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token.", LATENCY_S
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two deliveries of tokens.", GAP_S
        )
        self.e2e = self._histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", LATENCY_S
        )

    def _batches(self) -> None:
        self.batch_size = self._histogram(
            "batch_size", "Requests in a batch.", (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
        )
        self.batch_wait = self._histogram(
            "request_queue_time_seconds", "A request's wait for its batch to leave.", WAIT_S
        )
        self.running = self._gauge("num_requests_running", "Answers in the making.")
        self.waiting = self._gauge("num_requests_waiting", "Requests being gathered.")
        self._gauge("workers", "Gateway processes that serve.").set(1)

    def _servers(self) -> None:
        self.server_ready = self._by_server(
            "model_server_ready", "Whether a model server is ready, 1 or 0.", "livemax"
        )
        self.server_requests = self._by_server(
            "model_server_requests", "Requests that a model server has not finished.", "livesum"
        )

    def _totals(self) -> None:
        self.http_requests = self._counter(
            "http_requests", "HTTP requests by status; 499: the client left before.", "status"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of finished answers.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens delivered.")
        self.requests = self._counter(
            "requests", "Answers by how they ended: done, failed, disconnected.", "outcome"
        )
        self.rejections = self._counter("rejections", "Requests refused, by reason.", "reason")
        self.rate_limited = self._counter(
            "rate_limited",
            "Requests beyond a budget, by key and limit.",
            "key",
            "limit",
        )
        self.unchecked = self._counter(
            "rate_limit_unchecked", "Requests let in because RATE_LIMIT_STORAGE was away."
        )
        self.retries = self._counter("retries", "Requests sent once more, by reason.", "reason")
        self.resumes = self._counter("resumes", "Answers continued behind delivered tokens.")
        self.disconnects = self._counter("disconnects", "Clients that left before the end.")

    def _gauge(self, name: str, text: str) -> Gauge:
        name = f"{PREFIX}_{name}"
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self.registry)

    def _by_server(self, name: str, text: str, mode: Literal["livemax", "livesum"]) -> Gauge:
        """`mode`: how the values of several worker processes are joined."""
        name = f"{PREFIX}_{name}"
        return Gauge(name, text, ("server",), registry=self.registry, multiprocess_mode=mode)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def forget_server(self, url: str) -> None:
        """Show a model server no more; files that workers share keep it, not ready and idle."""
        for gauge in (self.server_ready, self.server_requests):
            if self._shared:
                gauge.labels(url).set(0)
            else:
                gauge.remove(url)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        registry = self.registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
