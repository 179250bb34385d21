"""The shipped heads: they fit the shipped model, and win tokens on files they have not seen."""

from __future__ import annotations

from pathlib import Path

from model_server.config import DEMO_HEADS, DEMO_MODEL
from model_server.llama.gguf import GgufHeader
from model_server.tools.convert_heads import read_base
from model_server.training.demo import acceptance, data

MAX_BYTES = 40_000_000  # model and heads together
REQUIRED_PER_STEP = 1.8


def test_they_are_made_for_this_model() -> None:
    header = GgufHeader(DEMO_HEADS)
    assert header.string("medusa.base_fingerprint") == read_base(DEMO_MODEL).fingerprint
    assert "calibration.accuracy" in header.tensors
    header.close()


def test_model_and_heads_are_small() -> None:
    assert DEMO_MODEL.stat().st_size + DEMO_HEADS.stat().st_size <= MAX_BYTES


def test_they_win_tokens_on_held_out_files(demo_held_out: Path) -> None:
    """The card's figure, on all of them."""
    files = data.read_held_out(demo_held_out)
    found = acceptance.measure(DEMO_MODEL, DEMO_HEADS, files)
    assert found.num_tokens == len(files) * acceptance.NUM_TOKENS
    assert found.tokens_per_step >= REQUIRED_PER_STEP


def test_repeats_are_counted_within_an_answer() -> None:
    loop = [1, 2, 3, 4] * 4  # 9 8-grams, 4 of them new
    assert acceptance.repeated([loop]) == 5 / 9
    assert acceptance.repeated([loop, list(range(8))]) == 5 / 10
