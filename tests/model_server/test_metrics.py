from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server.metrics import PREFIX, Metrics


def sample(metrics: Metrics, name: str) -> float:
    for family in text_string_to_metric_families(metrics.render().decode()):
        for found in family.samples:
            if found.name == f"{PREFIX}_{name}":
                return float(found.value)
    raise AssertionError(f"no sample {name}")


def test_the_python_share_is_a_median_of_the_last_steps() -> None:
    metrics = Metrics()
    for _ in range(250):
        metrics.observe_step(1.0, 0.5)
    for _ in range(150):
        metrics.observe_step(1.0, 0.75)
    assert sample(metrics, "step_python_share") == pytest.approx(0.25)
    assert sample(metrics, "step_seconds_count") == 400


def test_names_carry_over_from_known_dashboards() -> None:
    metrics = Metrics()
    metrics.generation_tokens.inc(3)
    metrics.finished.labels("stop").inc()
    for name in ("generation_tokens_total", "request_success_total"):
        assert sample(metrics, name) > 0
    for name in ("num_requests_running", "num_requests_waiting", "num_preemptions_total"):
        assert sample(metrics, name) == 0


def test_two_servers_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.batches.inc()
    assert sample(second, "batches_total") == 0
