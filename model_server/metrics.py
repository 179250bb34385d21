"""What the model server counts, in Prometheus' words, and the Python share of a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import nan
from statistics import median

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "medusa_server"
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_SHARE_STEPS = 200


class Metrics:
    """One registry per server. Suffixes are vLLM's, so that dashboards carry over."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shares: deque[float] = deque(maxlen=_SHARE_STEPS)
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
            "head_accuracy", "How often the first head's best was right, of the last 200; 0 to 1."
        )
        self.head_accuracy.set(nan)

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

    def observe_step(self, step_s: float, decode_s: float) -> None:
        """Take the times of one step that decoded something."""
        self.step.observe(step_s)
        self._shares.append((step_s - decode_s) / step_s)

    def observe_drafts(
        self, num_drafts: Sequence[int], num_paths: Sequence[int], num_accepted: Sequence[int]
    ) -> None:
        """Take what one step drafted for each request, in so many paths, and what was accepted."""
        if not num_drafts:
            return
        self.decode_rows.observe(len(num_drafts) + sum(num_drafts))
        num_plain, num_trees = num_drafts.count(0), sum(number > 1 for number in num_paths)
        num_chains = len(num_drafts) - num_plain - num_trees
        for mode, number in (("plain", num_plain), ("chain", num_chains), ("tree", num_trees)):
            self.steps[mode].inc(number)
        if num_plain < len(num_drafts):
            self._count_drafts(num_drafts, num_accepted)

    def _count_drafts(self, num_drafts: Sequence[int], num_accepted: Sequence[int]) -> None:
        self.drafts.inc(sum(count > 0 for count in num_drafts))
        self.draft_tokens.inc(sum(num_drafts))
        self.accepted_tokens.inc(sum(num_accepted))
        for position in range(max(num_accepted)):
            count = sum(accepted > position for accepted in num_accepted)
            self.accepted_per_pos.labels(position).inc(count)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        if self._shares:
            self.python_share.set(median(self._shares))
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self.registry)
