"""The heads written for the twin say, from the file itself, what they are known to say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize

from model_server.speculation.confidence import BIN_WIDTH, NUM_BINS, HeadConfidence
from model_server.speculation.tree import Candidates, DraftTree, best_first
from tests import twin, twin_heads, vocabulary
from tests.gguf_file import FILE_TYPES, Shape
from tests.twin_heads import MISS, NONE, NUM_RANKS, PUBLISHED, SURE, Accuracy, Options

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

WIDE = replace(twin.TINY, name="wide twin", vocab_size=3_000, hidden=1_024)
SPREAD = Options(replace(PUBLISHED, spread=0.5))
# Largest error of a log probability; a bin is 0.5 wide, and the known ones lie in its middle.
TOLERANCE = {"F32": 0.1, "F16": 0.1, "Q8_0": 0.1, "Q4_0": 0.5, "Q4_K": 0.5}
# Published for Vicuna-7B: expected tokens a step by rows, under independence, from five ranks.
PUBLISHED_TOKENS = {2: 1.56, 3: 1.74, 4: 1.85, 5: 1.91, 6: 1.96, 8: 2.04, 12: 2.15, 16: 2.21}


def walk(shape: Shape) -> Ints:
    return np.array(vocabulary.readable(shape.vocab_size))


def head_logits(path: Path, head: int, shape: Shape) -> Floats:
    """(token, vocabulary) logits of a head behind every token, by its formula."""
    tensors = {
        t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist())
        for t in gguf.GGUFReader(path).tensors
        if t.name.startswith(f"head.{head}.")
    }
    state = twin.embeddings(np.arange(shape.vocab_size), shape).astype(np.float32)
    inner = state @ tensors[f"head.{head}.block.0.weight"].T + tensors[f"head.{head}.block.0.bias"]
    state = state + inner / (1 + np.exp(-inner))
    return np.asarray(state @ tensors[f"head.{head}.output.weight"].T)


def top_five(logits: Floats) -> Ints:
    best = np.argpartition(-logits, NUM_RANKS, axis=1)[:, :NUM_RANKS]
    order = np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1)
    return np.asarray(np.take_along_axis(best, order, axis=1))


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("shape", [twin.TINY, WIDE], ids=lambda shape: shape.name)
def test_file_says_the_known_candidates(shape: Shape, file_type: str, tmp_path: Path) -> None:
    options = replace(SPREAD, file_type=file_type)
    path = twin_heads.write(tmp_path / "heads.gguf", shape=shape, options=options)
    tokens = np.arange(shape.vocab_size)
    known = twin_heads.candidates(tokens, shape, options)
    confidence = twin_heads.log_probs(tokens, shape, options)
    for head in range(PUBLISHED.num_heads):
        logits = head_logits(path, head, shape)
        np.testing.assert_array_equal(top_five(logits), known[:, head])
        error = np.take_along_axis(log_softmax(logits), known[:, head], axis=1) - confidence
        assert np.abs(error).max() < TOLERANCE[file_type]
        assert (np.abs(error) < BIN_WIDTH / 2).mean() > 0.97


def test_candidates_are_five_different_tokens() -> None:
    for shape in (twin.TINY, WIDE, twin.VICUNA_7B):
        ids = np.sort(twin_heads.candidates(np.arange(shape.vocab_size), shape, SPREAD))
        assert (np.diff(ids) > 0).all()


def test_right_rank_says_which_candidate_the_twin_continues_with() -> None:
    for shape in (twin.TINY, WIDE):
        tokens = np.arange(shape.vocab_size)
        ids = twin_heads.candidates(tokens, shape, SPREAD)
        ranks = twin_heads.right_rank(tokens, shape, SPREAD)
        for token in tokens:
            following = twin.answer([int(token)], 6, shape=shape, ignore_eos=True)[1:]
            for candidate, rank, right in zip(ids[token], ranks[token], following, strict=True):
                assert candidate.tolist().count(right) == (rank != MISS)
                assert rank == MISS or candidate[rank] == right


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_shares_come_out_as_asked_for(spread: float) -> None:
    options = Options(replace(PUBLISHED, spread=spread))
    for shape in (twin.TINY, WIDE):
        ranks = twin_heads.right_rank(walk(shape), shape, options)
        shares = (ranks[:, :, None] <= np.arange(NUM_RANKS)).mean(axis=0)
        assert np.abs(shares - PUBLISHED.cumulative).max() <= 1 / len(ranks)


def test_each_kind_has_its_own_shares() -> None:
    kinds = twin_heads.kinds(WIDE, SPREAD)[walk(WIDE)]
    ranks = twin_heads.right_rank(walk(WIDE), WIDE, SPREAD)
    assert kinds.mean() == pytest.approx(0.5, abs=1 / len(kinds))
    for kind, asked in enumerate(SPREAD.accuracy.by_kind()):
        shares = (ranks[kinds == kind][:, :, None] <= np.arange(NUM_RANKS)).mean(axis=0)
        assert np.abs(shares - asked).max() <= 1 / (kinds == kind).sum()
    assert SPREAD.accuracy.by_kind()[SURE, 0, 0] == pytest.approx(0.78)


def test_one_head_tells_nothing_of_another() -> None:
    for shape, tolerance in ((twin.TINY, 0.05), (twin.VICUNA_7B, 0.008)):
        ranks = twin_heads.right_rank(walk(shape), shape, Options())
        for first, second in combinations(range(PUBLISHED.num_heads), 2):
            for depths in product(range(1, NUM_RANKS + 1), repeat=2):
                joint = (ranks[:, (first, second)] < depths).all(axis=1).mean()
                shares = (ranks[:, (first, second)] < depths).mean(axis=0)
                assert joint == pytest.approx(shares.prod(), abs=tolerance)


def test_heads_are_right_in_a_row_as_often_as_if_independent() -> None:
    for depths in product(range(1, NUM_RANKS + 1), repeat=2):
        ranks = twin_heads.right_rank(walk(twin.TINY), twin.TINY, Options())[:, :2]
        shares = (ranks < depths).mean(axis=0)
        assert (ranks < depths).all(axis=1).mean() == pytest.approx(shares.prod(), abs=0.012)


def test_all_depends_on_the_seed_alone(tmp_path: Path) -> None:
    one, same = (twin_heads.write(tmp_path / name).read_bytes() for name in ("one", "same"))
    other = twin_heads.write(tmp_path / "other", options=Options(seed=1)).read_bytes()
    assert one == same
    assert one != other


def test_heads_that_are_never_right_say_so() -> None:
    options = Options(NONE)
    assert (twin_heads.right_rank(walk(WIDE), WIDE, options) == MISS).all()
    assert twin_heads.expected_tokens_per_step(NONE, 8) == 1.0
    share, count = twin_heads.calibration(WIDE, options)
    assert count.sum() == NONE.num_heads * NUM_RANKS * len(walk(WIDE))
    assert not share.any()


def test_calibration_tells_the_server_each_candidates_accuracy(tmp_path: Path) -> None:
    path = twin_heads.write(tmp_path / "heads.gguf", shape=WIDE, options=SPREAD)
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    table = tensors["calibration.accuracy"], tensors["calibration.count"]
    assert table[0].shape == table[1].shape == (PUBLISHED.num_heads, NUM_BINS)
    confidence = HeadConfidence(PUBLISHED.num_heads, table)
    kinds = twin_heads.kinds(WIDE, SPREAD)[walk(WIDE)]
    said = twin_heads.log_probs(walk(WIDE), WIDE, SPREAD).astype(np.float32)
    for kind, asked in enumerate(SPREAD.accuracy.by_kind()):
        rows = np.repeat(said[kinds == kind][:1], PUBLISHED.num_heads, axis=0)
        shares = np.diff(asked, axis=1, prepend=0.0)
        assert np.abs(confidence.probabilities(rows) - shares).max() < 0.01


def test_calibration_can_be_left_out(tmp_path: Path) -> None:
    options = Options(is_calibrated=False, base_fingerprint="abc")
    reader = gguf.GGUFReader(twin_heads.write(tmp_path / "heads.gguf", options=options))
    assert not [t.name for t in reader.tensors if t.name.startswith("calibration")]
    assert reader.fields["medusa.base_fingerprint"].contents() == "abc"


def test_expected_tokens_are_the_published_ones() -> None:
    for num_rows, expected in PUBLISHED_TOKENS.items():
        measured = twin_heads.expected_tokens_per_step(PUBLISHED, num_rows)
        assert measured == pytest.approx(expected, abs=0.006)


def test_best_first_trees_are_the_best_of_all_trees() -> None:
    by_depth = [[0.4, 0.3, 0.1], [0.5, 0.2, 0.2], [0.3, 0.3, 0.0]]
    paths = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]
    value = {p: np.prod([by_depth[d][r] for d, r in enumerate(p)]) for p in paths}
    for num_drafts in (1, 2, 3):
        trees = (
            nodes
            for nodes in combinations(paths, num_drafts)
            if all(len(path) == 1 or path[:-1] in nodes for path in nodes)
        )
        best = 1 + max(sum(value[path] for path in nodes) for nodes in trees)
        assert twin_heads.expected_tokens(by_depth, num_drafts + 1)[-1] == pytest.approx(best)


def accepted_tokens(token: int, num_rows: int, shape: Shape, options: Options) -> int:
    """Tokens that a step behind this token emits, with the best tree of so many rows."""
    ids = twin_heads.candidates([token], shape, options)[0]
    kind = twin_heads.kinds(shape, options)[token]
    shares = np.diff(options.accuracy.by_kind()[kind], axis=1, prepend=0.0)
    ranked = [list(zip(*row, strict=True)) for row in zip(ids.tolist(), shares, strict=True)]
    wanted = Candidates(ranked, max_depth=len(ranked), max_leaves=num_rows)
    sampled, *right = twin.answer([token], len(ranked) + 1, shape=shape, ignore_eos=True)
    tree = DraftTree(sampled)
    for choice in best_first([wanted]):
        if tree.num_nodes == num_rows:
            break
        tree.add(choice.token, choice.parent)
    node, num_accepted = 0, 1
    for following in right:
        child = tree.child(node, following)
        if child is None:
            break
        node, num_accepted = child, num_accepted + 1
    return num_accepted


@pytest.mark.parametrize("options", [Options(), SPREAD], ids=["alike", "sure and unsure"])
@pytest.mark.parametrize("num_rows", [2, 4, 8, 16])
def test_steps_emit_the_expected_tokens(num_rows: int, options: Options) -> None:
    expected = twin_heads.expected_tokens_per_step(options.accuracy, num_rows)
    everywhere = [accepted_tokens(int(t), num_rows, twin.TINY, options) for t in walk(twin.TINY)]
    assert np.mean(everywhere) == pytest.approx(expected, rel=0.02)
    token, num_tokens, num_steps = vocabulary.BOS, 0, 0
    while num_tokens < 2_500:
        num_accepted = accepted_tokens(token, num_rows, WIDE, options)
        token = twin.answer([token], num_accepted, shape=WIDE)[-1]
        num_tokens, num_steps = num_tokens + num_accepted, num_steps + 1
    assert num_tokens / num_steps == pytest.approx(expected, rel=0.05)


def test_accuracy_comes_from_a_file_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps([[0.5, 0.6, 0.6, 0.7, 1]]))
    assert Accuracy.named(str(path), 0.2) == Accuracy(((0.5, 0.6, 0.6, 0.7, 1.0),), 0.2)
    with pytest.raises(ValueError, match="head 1 needs 5 rising shares"):
        Accuracy((PUBLISHED.cumulative[0], (0.5, 0.4, 0.6, 0.7, 0.8)))
    with pytest.raises(ValueError, match=r"spread must be within 0..1, not 1\.5"):
        replace(PUBLISHED, spread=1.5)


def test_one_command_writes_the_twin_and_its_heads(tmp_path: Path) -> None:
    base, heads = tmp_path / "twin.gguf", tmp_path / "heads.gguf"
    command = [sys.executable, "-m", "tests.twin", str(base), "--layers", "1", "--accuracy", "0"]
    subprocess.run([*command, "--heads", str(heads), "--head-type", "Q4_0"], check=True)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(heads).tensors}
    assert types["head.4.output.weight"] == "Q4_0"
    known = twin_heads.candidates(np.arange(twin.TINY.vocab_size), twin.TINY, Options(NONE))
    np.testing.assert_array_equal(top_five(head_logits(heads, 4, twin.TINY)), known[:, 4])
    layers = {t.name.split(".")[1] for t in gguf.GGUFReader(base).tensors if "blk." in t.name}
    assert layers == {"0"}


def test_command_refuses_a_bad_accuracy_before_it_writes(tmp_path: Path) -> None:
    accuracy = tmp_path / "accuracy.json"
    accuracy.write_text("[[0.5, 0.4, 0.6, 0.7, 0.8]]")
    command = [sys.executable, "-m", "tests.twin", str(tmp_path / "twin.gguf")]
    command += ["--heads", str(tmp_path / "heads.gguf"), "--accuracy", str(accuracy)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert "head 0 needs 5 rising shares within 0..1" in run.stderr
    assert list(tmp_path.iterdir()) == [accuracy]
