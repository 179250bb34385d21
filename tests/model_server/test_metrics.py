from __future__ import annotations

from math import isnan

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server.metrics import PREFIX, ModelServerMetrics, RequestPart, StepRecord


def sample(metrics: ModelServerMetrics, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(metrics.render().decode()):
        for found in family.samples:
            if found.name == f"{PREFIX}_{name}" and found.labels.items() >= labels.items():
                return float(found.value)
    raise AssertionError(f"no sample {name}")


def test_the_python_share_is_a_median_of_the_last_steps() -> None:
    metrics = ModelServerMetrics()
    for _ in range(250):
        metrics.note_step(StepRecord(1.0, 0.5))
    for _ in range(150):
        metrics.note_step(StepRecord(1.0, 0.75))
    assert sample(metrics, "step_python_share") == pytest.approx(0.25)
    assert sample(metrics, "step_seconds_count") == 400


def test_names_carry_over_from_known_dashboards() -> None:
    metrics = ModelServerMetrics()
    metrics.note_step(StepRecord(1.0, 0.5, parts=[RequestPart(3, 4, 2, 2)]))
    metrics.finished.labels("stop").inc()
    for name in ("generation_tokens_total", "request_success_total"):
        assert sample(metrics, name) > 0
    for name in ("num_requests_running", "num_requests_waiting", "num_preemptions_total"):
        assert sample(metrics, name) == 0


def test_two_servers_do_not_share_counts() -> None:
    first, second = ModelServerMetrics(), ModelServerMetrics()
    first.batches.inc()
    assert sample(second, "batches_total") == 0


def test_a_step_counts_its_rows_and_how_each_request_drafted() -> None:
    metrics = ModelServerMetrics()
    plain, chain, tree = RequestPart(1, 0, 1, 0), RequestPart(3, 2, 1, 2), RequestPart(2, 5, 3, 1)
    metrics.note_step(StepRecord(1.0, 0.5))  # one that only prefills
    metrics.note_step(StepRecord(1.0, 0.5, parts=[plain, plain]))
    metrics.note_step(StepRecord(1.0, 0.5, parts=[plain, chain, tree, RequestPart(1, 3, 2, 0)]))
    assert sample(metrics, "step_decode_rows_count") == 2
    assert sample(metrics, "step_decode_rows_sum") == 2 + 4 + 10
    by_mode = {
        mode: sample(metrics, "spec_decode_steps_total", mode=mode) for mode in metrics.steps
    }
    assert by_mode == {"plain": 3, "chain": 1, "tree": 2}
    assert sample(metrics, "spec_decode_num_drafts_total") == 3
    assert sample(metrics, "spec_decode_num_draft_tokens_total") == 10
    assert sample(metrics, "spec_decode_num_accepted_tokens_total") == 3
    assert sample(metrics, "generation_tokens_total") == 9
    per_pos = "spec_decode_num_accepted_tokens_per_pos_total"
    assert [sample(metrics, per_pos, position=each) for each in "01"] == [2, 1]


def test_every_mode_is_shown_before_the_first_step() -> None:
    assert [
        sample(ModelServerMetrics(), "spec_decode_steps_total", mode=mode)
        for mode in ("plain", "chain", "tree")
    ] == [0, 0, 0]


def test_heads_that_nobody_has_judged_have_no_accuracy() -> None:
    assert isnan(sample(ModelServerMetrics(), "head_accuracy"))
