"""Heads of the twin, examined once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.report import Report
from tests import twin, twin_heads
from tests.twin_heads import PUBLISHED

NUM_PROMPTS, NUM_TOKENS = 24, 64


@pytest.fixture(scope="session")
def twin_heads_path(models_dir: Path) -> Path:
    """Not calibrated, and naming no base."""
    options = twin_heads.Options(PUBLISHED, is_calibrated=False)
    return twin_heads.write(models_dir / "doctor-heads.gguf", options=options)


@pytest.fixture(scope="session")
def prompts_path(models_dir: Path) -> Path:
    """Prompts that end all over the twin's walk: its answers go on from there."""
    lines = [twin.prompt_text(twin.prompt(5, seed=seed)) for seed in range(NUM_PROMPTS)]
    path = models_dir / "prompts.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def report(twin_path: Path, twin_heads_path: Path, prompts_path: Path) -> Report:
    options = ExamineOptions(prompts_path, NUM_PROMPTS, NUM_TOKENS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("N_THREADS", "1")
        return examine(twin_path, twin_heads_path, options)
