"""The known answers hold on the files themselves; the random model listens to all it is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from tests import gguf_file, random_model, twin, vocabulary
from tests.reference import TYPE_BF16, Reference

# Largest error of a logit, of 16: quantization moves them, but never near the gap of 2.4.
TOLERANCE = {"F32": 1e-4, "F16": 0.01, "Q8_0": 0.1, "Q4_0": 0.3, "Q4_K": 0.3}


@pytest.mark.parametrize("file_type", gguf_file.FILE_TYPES)
def test_every_token_has_its_known_logits(file_type: str, tmp_path: Path) -> None:
    path = twin.write(tmp_path / "twin.gguf", file_type=file_type)
    tokens = list(range(twin.TINY.vocab_size))
    with Reference(path) as model:
        measured = model.logits(tokens)
    known = np.stack([twin.logits(token) for token in tokens])
    assert np.abs(measured - known).max() < TOLERANCE[file_type]
    best_five = np.argsort(-measured, axis=1)[:, : len(twin.RANKS)]
    np.testing.assert_array_equal(best_five, twin.successors(twin.TINY).T)


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K"])
def test_more_tokens_than_dimensions_keep_their_answers(file_type: str, tmp_path: Path) -> None:
    shape = replace(twin.TINY, hidden=1_024, vocab_size=3_000, num_layers=1)
    path = twin.write(tmp_path / "twin.gguf", shape=shape, file_type=file_type)
    tokens = list(range(shape.vocab_size))
    with Reference(path) as model:
        measured = model.logits(tokens)
    np.testing.assert_array_equal(measured.argmax(axis=1), twin.successors(shape)[0])


def test_embeddings_overlap_as_little_as_possible() -> None:
    tokens = np.arange(4 * 256)
    shape = replace(twin.TINY, hidden=256, vocab_size=len(tokens))
    rows = twin.embeddings(tokens, shape).astype(np.int64)
    overlap = rows @ rows.T - 256 * np.eye(len(tokens), dtype=np.int64)
    assert np.abs(overlap).max() == 16


def test_tokenizer_and_vocabulary_agree(twin_path: Path) -> None:
    prompts = [twin.prompt(n, seed=n) for n in (2, 3, 10, 200)]
    with Reference(twin_path) as model:
        assert [model.tokenize(twin.prompt_text(p)) for p in prompts] == prompts
        pieces = [model.piece(token) for token in range(model.vocab_size)]
    assert pieces == [vocabulary.text_bytes(token, 512) for token in range(512)]


def test_big_vocabulary_comes_back_from_its_text(tmp_path: Path) -> None:
    shape = replace(random_model.SHAPE, vocab_size=12_000, num_layers=1)
    path = random_model.write(tmp_path / "random.gguf", shape=shape, file_type="Q8_0")
    tokens = twin.prompt(500, shape=shape)
    with Reference(path) as model:
        assert model.tokenize(twin.prompt_text(tokens, shape=shape)) == tokens


def test_the_walk_never_ends_and_visits_every_readable_piece() -> None:
    readable = vocabulary.readable(twin.TINY.vocab_size)
    walked = twin.answer([vocabulary.BOS], len(readable))
    assert sorted(walked) == list(readable)
    assert "\ufffd" not in twin.text(walked)


@pytest.mark.parametrize(
    ("start", "expected"), [("@", "🦙"), ("#", "é"), ("~", "\ufffd"), ("3", "210"), ("0", "")]
)
def test_special_starts_spell_what_they_promise(start: str, expected: str, twin_path: Path) -> None:
    with Reference(twin_path) as model:
        tokens = model.tokenize(f"ba {start}")
        answer = twin.answer(tokens, 10)
        rows = model.logits(tokens + answer)
    assert twin.text(answer).startswith(expected)
    assert rows[len(tokens) - 1 : -1].argmax(axis=1).tolist() == answer
    ends = start in twin.ENDS_AFTER
    assert (rows[-1].argmax() == vocabulary.EOS) == ends
    assert len(answer) == (int(start) if ends else 10)


def test_ignoring_the_end_goes_on_behind_it() -> None:
    digit = vocabulary.token_ids(512)["1"]
    answer = twin.answer([digit], 6, ignore_eos=True)
    assert answer[1] == vocabulary.EOS
    assert len(answer) == 6


def test_probabilities_follow_the_filters() -> None:
    token = 300
    ranked = twin.successors(twin.TINY)[:, token]
    everything = twin.probabilities(token)
    assert everything.sum() == pytest.approx(1)
    assert everything[ranked[1]] / everything[ranked[0]] == pytest.approx(np.exp(-2.4))
    assert np.count_nonzero(twin.probabilities(token, top_k=3)) == 3
    assert np.count_nonzero(twin.probabilities(token, top_p=0.95)) == 2
    assert np.count_nonzero(twin.probabilities(token, min_p=0.005)) == 3
    flat = twin.probabilities(token, temperature=8.0, top_k=2)
    assert flat[ranked[0]] == pytest.approx(1 / (1 + np.exp(-0.3)))


def test_random_attention_hangs_on_every_earlier_token_and_its_place(
    random_model_path: Path,
) -> None:
    tokens = twin.prompt(300, seed=1)
    with Reference(random_model_path) as model:
        whole = model.logits(tokens)
        for changed in (1, 100, 298):
            other = [*tokens[:changed], tokens[changed] ^ 1, *tokens[changed + 1 :]]
            assert np.abs(model.logits(other)[-1] - whole[-1]).max() > 0.01
        swapped = [*tokens[:100], tokens[101], tokens[100], *tokens[102:]]
        assert np.abs(model.logits(swapped)[-1] - whole[-1]).max() > 0.01
        assert np.abs(model.logits(tokens, batch_rows=1) - whole).max() < 1e-5
    assert 0.8 < whole.std() < 1.2


def test_random_model_is_exact_with_wide_values(random_q8_path: Path) -> None:
    tokens = twin.prompt(300, seed=2)
    with Reference(random_q8_path) as model:
        rows = [
            model.logits(
                tokens,
                flash_attention=True,
                type_k=llama_cpp.GGML_TYPE_F16,
                type_v=TYPE_BF16,
                batch_rows=batch_rows,
            )
            for batch_rows in (512, 64, 5, 1)
        ]
    for one, other in pairwise(rows):
        np.testing.assert_array_equal(one, other)


def test_random_model_has_a_shape_of_its_own() -> None:
    assert random_model.SHAPE.num_kv_heads < random_model.SHAPE.num_heads
