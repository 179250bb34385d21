from __future__ import annotations

from collections.abc import Iterator

import llama_cpp
import numpy as np
import pytest

from model_server.errors import EngineError, StartError
from model_server.llama import backend
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_SEQS, Context, ContextOptions
from model_server.llama.model import Model
from tests import twin


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, ContextOptions(512, MAX_SEQS, 1, "f32", "f32", "off"))
    yield made
    made.close()


def decode(context: Context, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    """Decode tokens at the end of a sequence; the most likely next token."""
    batch = LlamaBatch(512)
    batch.add_span(tokens[:-1], start, seq)
    batch.add(tokens[-1], start + len(tokens) - 1, [seq], output=True)
    context.decode(batch)
    return int(context.logits(1)[0].argmax())


def test_the_twin_gives_its_known_answer(context: Context) -> None:
    tokens = twin.prompt(20)
    assert decode(context, tokens) == twin.answer(tokens, 1)[0]
    assert context.length(0) == 20


def test_every_output_row_has_its_logits(context: Context) -> None:
    tokens = twin.prompt(6)
    batch = LlamaBatch(8)
    for position, token in enumerate(tokens):
        batch.add(token, position, [3], output=position % 2 == 1)
    context.decode(batch)
    best = context.logits(3).argmax(axis=1).tolist()
    assert best == [twin.answer([token], 1)[0] for token in tokens[1::2]]


def test_a_copy_shares_a_prefix_and_goes_on_alone(context: Context) -> None:
    tokens = twin.prompt(20)
    decode(context, tokens)
    context.copy(0, 5, 0, 12)
    assert (context.length(5), context.length(0)) == (12, 20)
    context.remove(0, 0)
    assert (context.length(5), context.length(0)) == (12, 0)
    assert decode(context, tokens[12:], seq=5, start=12) == twin.answer(tokens, 1)[0]


def test_a_sequence_doubled_holds_twice_the_cells(context: Context) -> None:
    decode(context, twin.prompt(200))
    context.double(0, 1)
    assert (context.length(0), context.length(1)) == (200, 0)
    decode(context, twin.prompt(110), seq=2)  # what is left of 512, and not one more
    with pytest.raises(EngineError):
        decode(context, twin.prompt(3), seq=3)
    with pytest.raises(EngineError, match="no room"):
        context.double(0, 1)
    assert (context.length(0), context.length(1)) == (200, 0)


def test_remove_cuts_the_tail_and_clear_takes_all(context: Context) -> None:
    decode(context, twin.prompt(20))
    context.remove(0, 7)
    assert context.length(0) == 7
    context.clear()
    assert context.length(0) == 0


def test_a_full_pool_is_an_error_and_not_the_end(context: Context) -> None:
    assert context.num_cells == 512
    decode(context, twin.prompt(500))
    with pytest.raises(EngineError, match="20 rows"):
        decode(context, twin.prompt(20), seq=1)
    context.clear()
    tokens = twin.prompt(20)
    assert decode(context, tokens) == twin.answer(tokens, 1)[0]


def test_each_failure_has_its_own_reason(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter(("the first", "the second"))

    def fail(*_: object) -> int:
        backend._last_errors.append(next(reasons))
        return 1

    backend.clear_errors()
    monkeypatch.setattr(llama_cpp, "llama_decode", fail)
    for reason in ("the first", "the second"):
        with pytest.raises(EngineError, match=f"ended with 1: {reason}"):
            decode(context, twin.prompt(2))


@pytest.mark.parametrize("num_cells", [1, 50, 255, 256, 300])
def test_any_number_of_cells_takes_the_rows_it_claims(model: Model, num_cells: int) -> None:
    """Rows beyond what llama.cpp was told end the process."""
    context = Context(model, ContextOptions(num_cells, MAX_SEQS, 1))
    decode(context, twin.prompt(min(512, context.num_cells)))
    assert context.num_cells >= num_cells
    context.close()


def test_a_context_that_llama_cpp_refuses_is_an_error_in_words(model: Model) -> None:
    options = ContextOptions(512, MAX_SEQS, 1, "q8_0", "q8_0", "off")
    with pytest.raises(StartError, match=r"KV_CACHE_TOKENS=512 can be made: .*flash_attn"):
        Context(model, options)


def test_the_mode_names_what_changes_numbers() -> None:
    modes = {
        ContextOptions(512, 8, threads, k, v, flash).mode
        for threads in (1, 2)
        for k, v, flash in [("f16", "f16", "off"), ("f16", "bf16", "on"), ("f16", "f16", "on")]
    }
    assert len(modes) == 3


def test_logits_are_a_view_of_the_last_decode(context: Context) -> None:
    decode(context, twin.prompt(5))
    kept = context.logits(1).copy()
    decode(context, twin.prompt(5, seed=1), seq=1)
    assert not np.array_equal(kept, context.logits(1))
