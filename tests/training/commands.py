"""The command that trains, on prompts of the twin."""

from __future__ import annotations

from pathlib import Path

from model_server.training import __main__ as training
from tests import twin

QUICK = ["--answer-tokens", "60", "--epochs", "6", "--batch", "64", "--learning-rate", "0.01"]
NUM_HEADS = 3


def prompts(path: Path, count: int) -> Path:
    lines = [twin.prompt_text(twin.prompt(4, seed)) for seed in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(base: Path, out: Path, *more: str) -> int:
    lines = prompts(out.with_suffix(".txt"), 60)
    given = ["--prompts", str(lines), "--heads", str(NUM_HEADS), *QUICK, *more]
    return int(training.main([str(base), str(out), *given]))
