"""What the model server counts, in Prometheus' words, and the Python share of a step."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from math import nan
from statistics import median
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "medusa_server"
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_SHARE_STEPS = 200
_MOST_UNCOUNTED = 16  # steps


class RequestPart(NamedTuple):
    """One request in one step; `num_paths`: of its draft tree."""

    num_tokens: int
    num_drafts: int
    num_paths: int
    num_accepted: int


@dataclass
class StepRecord:
    """What a step did and how long it took; `waits_s`: between two steps that gave tokens."""

    step_s: float = 0.0
    computed_s: float = 0.0
    num_preemptions: int = 0
    parts: list[RequestPart] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


class ModelServerMetrics:
    """One registry per server. Suffixes are vLLM's, so that dashboards carry over."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shares: deque[float] = deque(maxlen=_SHARE_STEPS)
        self._steps: deque[StepRecord] = deque()
        self._counting = threading.Lock()
        self._gauges()
        self._totals()
        self._speculation()
        self._endings()
        self._times()

    def _gauges(self) -> None:
        self.running = self._gauge("num_requests_running", "Requests in slots.")
        self.waiting = self._gauge("num_requests_waiting", "Requests waiting for a slot.")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of the KV pool in use, 0 to 1.")
        self.python_share = self._gauge(
            "step_python_share", "(step - decode) / step, median of the last 200 steps."
        )
        self.head_accuracy = self._gauge(
            "head_accuracy",
            "How often the first head's best was right, of the last 200 in requests without a "
            "shape, bias, penalties or a temperature above 1; 0 to 1.",
        )
        self.head_accuracy.set(nan)  # until an engine knows

    def _totals(self) -> None:
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.cached_tokens = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the KV cache."
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens emitted.")
        self.preemptions = self._counter(
            "num_preemptions", "Requests put back, the KV pool being full."
        )
        self.batches = self._counter("batches", "POST /batch calls taken.")
        self.batch_requests = self._counter("batch_requests", "Requests they held.")

    def _speculation(self) -> None:
        self.drafts = self._counter("spec_decode_num_drafts", "Steps of requests with a draft.")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens drafted.")
        self.accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted tokens that were accepted."
        )
        self.accepted_per_pos = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "The same by position in the draft, from 0.",
            "position",
        )
        by_mode = self._counter(
            "spec_decode_steps",
            "Steps of requests by their draft: plain (none), chain, tree (several paths).",
            "mode",
        )
        self.steps = {mode: by_mode.labels(mode) for mode in ("plain", "chain", "tree")}

    def _endings(self) -> None:
        self.finished = self._counter(
            "request_success", "Requests ended, by reason; abort: cancelled.", "finished_reason"
        )
        self.failures = self._counter(
            "request_failures", "Requests refused or failed, by reason.", "reason"
        )

    def _times(self) -> None:
        self.step = self._histogram("step_seconds", "One step of the engine.", _STEP_BUCKETS)
        self.decode_rows = self._histogram(
            "step_decode_rows", "Rows of a step's decode, those of drafts included.", _ROW_BUCKETS
        )
        self.queue = self._histogram(
            "request_queue_time_seconds", "A request's wait for a slot.", _WAIT_BUCKETS
        )
        self.ttft = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _WAIT_BUCKETS
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two steps that gave tokens.", _STEP_BUCKETS
        )
        self.e2e = self._histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", _WAIT_BUCKETS
        )

    def note_step(self, record: StepRecord) -> None:
        """Take one step. It is counted before the next scrape, with others: that is cheaper."""
        self._steps.append(record)
        if len(self._steps) >= _MOST_UNCOUNTED:
            self._count_steps()

    def _count_steps(self) -> None:
        with self._counting:
            while self._steps:
                self._count_step(self._steps.popleft())

    def _count_step(self, record: StepRecord) -> None:
        self.step.observe(record.step_s)
        self._shares.append((record.step_s - record.computed_s) / record.step_s)
        self.preemptions.inc(record.num_preemptions)
        for wait_s in record.waits_s:
            self.inter_token.observe(wait_s)
        if record.parts:
            self.decode_rows.observe(sum(1 + part.num_drafts for part in record.parts))
        for part in record.parts:
            self.generation_tokens.inc(part.num_tokens)
            mode = "tree" if part.num_paths > 1 else "chain" if part.num_drafts else "plain"
            self.steps[mode].inc()
            if part.num_drafts:
                self.drafts.inc()
                self.draft_tokens.inc(part.num_drafts)
                self.accepted_tokens.inc(part.num_accepted)
            for position in range(part.num_accepted):
                self.accepted_per_pos.labels(position).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        self._count_steps()
        if self._shares:
            self.python_share.set(median(self._shares))
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self.registry)
