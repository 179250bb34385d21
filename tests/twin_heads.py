"""Known-answer Medusa heads for the twin: right with chosen probabilities, by head and rank.

Blocks contribute nothing (their weights are zero, but the work is done), and the output matrices
send each token's state to five candidates with known scores. Which tokens a head is right at, and
at which rank, is drawn once by seed, independently from head to head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_server.medusa.head_file import UNKNOWN_BASE
from model_server.speculation.confidence import NUM_BINS, bins
from model_server.speculation.tree import Candidates, best_first
from model_server.tools import head_writer
from model_server.tools.gguf_writer import Floats
from model_server.tools.head_writer import Header, HeadTensors
from tests import checkpoints, twin, vocabulary
from tests.checkpoints import Bf16
from tests.gguf_file import Shape

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_RANKS = 5
MISS = NUM_RANKS  # in place of a rank: none of the candidates is right
UNSURE, SURE = 0, 1
# What the heads' softmax says of the five candidates: a bin of the calibration table for each.
_LOG_ODDS = np.array([[-0.75, -2.75, -3.75, -4.75, -5.75], [1.25, -2.25, -3.25, -4.25, -5.25]])
LOG_PROBS = -np.log1p(np.exp(-_LOG_ODDS))
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Accuracy:
    """How often a head's candidates hold the right token: top-1 to top-5, one tuple a head.

    `spread`: 0: alike at all tokens. Up to 1: half of all tokens are sure, with accuracies higher
    than these by this share of what is possible, and half unsure, with accuracies lower by as much.
    """

    cumulative: tuple[tuple[float, ...], ...]
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread must be within 0..1, not {self.spread}")
        for head, shares in enumerate(self.cumulative):
            rises = list(shares) == sorted(shares) and all(0 <= share <= 1 for share in shares)
            if len(shares) != NUM_RANKS or not rises:
                raise ValueError(
                    f"head {head} needs {NUM_RANKS} rising shares within 0..1, not {shares}"
                )

    @property
    def num_heads(self) -> int:
        return len(self.cumulative)

    @classmethod
    def named(cls, name: str, spread: float = 0.0) -> Accuracy:
        """`published`, `0` (never right), or a JSON file: a list of five shares for each head."""
        known = {"published": PUBLISHED.cumulative, "0": NONE.cumulative}
        rows = known[name] if name in known else json.loads(Path(name).read_text())
        return cls(tuple(tuple(map(float, row)) for row in rows), spread)

    def by_kind(self) -> Doubles:
        """(unsure and sure, heads, 5) cumulative shares."""
        mean = np.array(self.cumulative)
        shift = self.spread * np.minimum(mean, 1 - mean)
        return np.stack([mean - shift, mean + shift])


# Vicuna-7B v1.3 with its published heads.
PUBLISHED = Accuracy(
    (
        (0.560, 0.672, 0.727, 0.760, 0.780),
        (0.316, 0.424, 0.485, 0.528, 0.562),
        (0.201, 0.288, 0.348, 0.383, 0.417),
        (0.147, 0.225, 0.274, 0.311, 0.340),
        (0.118, 0.187, 0.235, 0.272, 0.300),
    )
)
NONE = Accuracy(((0.0,) * NUM_RANKS,) * 5)
# At this spread the published 64-row tree gains on independent heads what it was measured to gain:
# 2.565 tokens a step instead of 2.52.
MEASURED_SPREAD = 0.3


@dataclass(frozen=True)
class Options:
    """All that the heads hang on besides the twin's shape."""

    accuracy: Accuracy = PUBLISHED
    file_type: str = "Q8_0"
    seed: int = 0
    is_calibrated: bool = True
    base_fingerprint: str = UNKNOWN_BASE


def expected_tokens(by_depth: Sequence[Sequence[float]], num_rows: int) -> list[float]:
    """Expected tokens a step of the best trees of 1..num_rows rows, the sampled one included.

    `by_depth`: probabilities by head and rank, as if heads were right independently.
    """
    ranked = [[(rank, p) for rank, p in enumerate(row)] for row in by_depth]
    request = Candidates(ranked, max_depth=len(ranked), max_leaves=num_rows)
    expected = [1.0]
    for choice in best_first([request]):
        if len(expected) == num_rows:
            break
        expected.append(expected[-1] + choice.probability)
    return expected + [expected[-1]] * (num_rows - len(expected))


def expected_tokens_per_step(accuracy: Accuracy, num_rows: int) -> float:
    """Of the best tree of so many rows, root included, that each kind of token can have."""
    shares = np.diff(accuracy.by_kind(), axis=2, prepend=0.0)
    return float(np.mean([expected_tokens(kind.tolist(), num_rows)[-1] for kind in shares]))


@cache
def _draw(shape: Shape, options: Options) -> tuple[Ints, Ints]:
    """Each token's kind, and (heads, vocabulary) the rank of the right candidate or MISS."""
    rng = np.random.default_rng(options.seed)
    limits = options.accuracy.by_kind()
    walked = np.isin(np.arange(shape.vocab_size), vocabulary.readable(shape.vocab_size))
    kind = (_levels(walked.astype(np.int64), [], rng) < 0.5).astype(np.int64)
    if not options.accuracy.spread:
        kind[:] = UNSURE
    ranks: list[Ints] = []
    for head in range(options.accuracy.num_heads):
        levels = _levels(2 * walked + kind, ranks, rng)
        ranks.append((levels[:, None] >= limits[kind, head]).sum(axis=1))
    return kind, np.stack(ranks)


def _levels(group: Ints, finer: Sequence[Ints], rng: np.random.Generator) -> Doubles:
    """A number in 0..1 for each token: evenly spread in each group, and nearly so in finer ones.

    Along the order of the finer groups they follow a golden-ratio sequence, of which every stretch
    is nearly even: that keeps heads independent of those before them in small vocabularies too.
    """
    order = np.lexsort((rng.random(len(group)), *reversed(finer)))
    levels = np.empty(len(group))
    for value in np.unique(group):
        members = order[group[order] == value]
        sequence = (np.arange(len(members)) * GOLDEN + rng.random()) % 1
        levels[members] = (sequence.argsort().argsort() + 0.5) / len(members)
    return levels


def kinds(shape: Shape, options: Options) -> Ints:
    """UNSURE or SURE for each token."""
    return _draw(shape, options)[0]


def right_rank(tokens: Sequence[int] | Ints, shape: Shape, options: Options) -> Ints:
    """(len(tokens), heads) rank of the right candidate behind each token, or MISS."""
    return np.asarray(_draw(shape, options)[1].T[np.asarray(tokens)])


def candidates(tokens: Sequence[int] | Ints, shape: Shape, options: Options) -> Ints:
    """(len(tokens), heads, 5) what the heads propose behind each token, best first.

    Wrong ones are what the twin itself ranks lower at the place that the head proposes for.
    """
    ranked = twin.successors(shape, NUM_RANKS + 1)
    slot = np.arange(NUM_RANKS)
    here = np.asarray(tokens)
    ranks = right_rank(here, shape, options)
    out = np.empty((*ranks.shape, NUM_RANKS), dtype=np.int64)
    for head, rank in enumerate(ranks.T[:, :, None]):
        here = ranked[0, here]
        wrong = np.take_along_axis(ranked[1:, here].T, slot - (slot > rank), axis=1)
        out[:, head] = np.where(slot == rank, ranked[0, here][:, None], wrong)
    return out


def log_probs(tokens: Sequence[int] | Ints, shape: Shape, options: Options) -> Doubles:
    """(len(tokens), 5) log softmax of the candidates, alike for all heads.

    The file's are within 0.1 of it, before quantization.
    """
    return np.asarray(LOG_PROBS[kinds(shape, options)[np.asarray(tokens)]])


def _scores(shape: Shape, options: Options) -> Doubles:
    """(vocabulary, 5) scores with which the log softmax comes out as said; all others score 0."""
    others = 1 - np.exp(LOG_PROBS).sum(axis=1, keepdims=True)
    by_kind = LOG_PROBS - np.log(others / (shape.vocab_size - NUM_RANKS))
    return np.asarray(by_kind[kinds(shape, options)])


def calibration(shape: Shape, options: Options) -> tuple[Floats, Floats]:
    """(heads, bins) shares of right candidates and their counts, over all tokens of the walk.

    Each bin holds one rank of one kind, for which heads are right independently: the shares are
    those behind right heads as well.
    """
    walk = np.array(vocabulary.readable(shape.vocab_size))
    places = bins(log_probs(walk, shape, options).astype(np.float32))
    hits = right_rank(walk, shape, options).T[:, :, None] == np.arange(NUM_RANKS)
    count = np.bincount(places.ravel(), minlength=NUM_BINS)
    right = np.stack([np.bincount(places.ravel(), hit.ravel(), NUM_BINS) for hit in hits])
    share = (right / np.maximum(count, 1)).astype(np.float32)
    return share, np.broadcast_to(count.astype(np.float32), share.shape)


def _output_blocks(ids: Ints, scores: Doubles, shape: Shape) -> Iterator[Floats]:
    """Blocks of rows of a head's output matrix, from each token's candidates and their scores."""
    order = np.argsort(ids, axis=None, kind="stable")
    targets, before, wanted = ids.ravel()[order], order // NUM_RANKS, scores.ravel()[order]
    for start, stop in twin.row_blocks(shape, 256):
        part = slice(*np.searchsorted(targets, (start, stop)))
        states = twin.embeddings(before[part], shape).astype(np.float32)
        yield _rows(targets[part] - start, states, wanted[part], stop - start)


def _rows(row: Ints, states: Floats, wanted: Doubles, num_rows: int) -> Floats:
    """The smallest rows that give each of its states the wanted score, though states overlap.

    `row`: rising, the row that each state belongs to.
    """
    place = np.arange(len(row)) - np.searchsorted(row, row)
    depth = place.max(initial=0) + 1
    grouped = np.zeros((num_rows, depth, states.shape[1]), dtype=np.float32)
    grouped[row, place] = states
    target = np.zeros((num_rows, depth, 1), dtype=np.float32)
    target[row, place, 0] = wanted
    overlap = grouped @ grouped.transpose(0, 2, 1)
    empty = np.arange(depth) > np.bincount(row, minlength=num_rows)[:, None] - 1
    overlap += empty[:, :, None] * np.eye(depth, dtype=np.float32)
    # Rows of few distinct values would be rounded to 4 bits with errors that add up.
    noise = np.random.default_rng(0).uniform(-1, 1, (num_rows, states.shape[1], 1))
    noise = noise.astype(np.float32) * target.sum(axis=1, keepdims=True) / (16 * states.shape[1])
    weights = np.linalg.solve(overlap, target - grouped @ noise)
    return np.asarray((grouped.transpose(0, 2, 1) @ weights + noise)[:, :, 0])


def write(path: Path, *, shape: Shape = twin.TINY, options: Options | None = None) -> Path:
    """Write the head file for the twin of this shape."""
    options = options or Options()
    weight, bias = _idle_block(shape)
    heads = [HeadTensors([([weight], bias)], blocks) for blocks in _outputs(shape, options)]
    file = Header(
        shape.vocab_size,
        shape.hidden,
        file_type=options.file_type,
        base_fingerprint=options.base_fingerprint,
        name=f"heads of the {shape.name}",
        calibration=calibration(shape, options) if options.is_calibrated else None,
    )
    return head_writer.write(path, heads, file)


def write_published(
    path: Path, *, shape: Shape = twin.TINY, options: Options | None = None
) -> Path:
    """Write them as heads are published: a checkpoint in bf16, to be converted."""
    outputs = [np.concatenate(list(blocks)) for blocks in _outputs(shape, options or Options())]
    weights = checkpoints.Weights([[_idle_block(shape)]] * len(outputs), outputs)
    arrays = checkpoints.original(weights)
    return checkpoints.write_pt(path, {name: Bf16(values) for name, values in arrays.items()})


def _idle_block(shape: Shape) -> tuple[Floats, Floats]:
    """Weight and bias of a block that adds nothing."""
    return np.zeros((shape.hidden, shape.hidden), np.float32), np.zeros(shape.hidden, np.float32)


def _outputs(shape: Shape, options: Options) -> Iterator[Iterator[Floats]]:
    """Each head's output matrix, in blocks of rows."""
    ids = candidates(np.arange(shape.vocab_size), shape, options)
    scores = _scores(shape, options)
    for head in range(options.accuracy.num_heads):
        yield _output_blocks(ids[:, head], scores, shape)
