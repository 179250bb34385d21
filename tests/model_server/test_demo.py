"""The demo's heads: made for the file that is installed, small, calibrated, often right."""

from __future__ import annotations

import pytest

from model_server.config import DEMO_HEADS, DEMO_MODEL
from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.report import Report

MAX_BYTES = 12_000_000
ROWS, REQUIRED_PER_STEP, MAX_ERROR = 8, 1.5, 0.05


@pytest.fixture(scope="module")
def report() -> Report:
    """What the doctor says behind ten prompts of its own."""
    assert DEMO_MODEL is not None
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("N_THREADS", "1")
        return examine(DEMO_MODEL, DEMO_HEADS, ExamineOptions(num_prompts=10))


def test_they_are_made_for_the_demo_model(report: Report) -> None:
    assert report.fit.made_for == "this base"
    assert report.fit.num_heads > 0


def test_they_are_small() -> None:
    assert DEMO_HEADS.stat().st_size <= MAX_BYTES


def test_they_win_tokens(report: Report) -> None:
    [found] = [each for each in report.predictions if each.rows == ROWS]
    assert found.tokens_per_step >= REQUIRED_PER_STEP


def test_their_confidence_can_be_believed(report: Report) -> None:
    assert report.calibration_errors.stored is not None
    assert report.calibration_errors.before <= MAX_ERROR
