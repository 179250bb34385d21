"""A whole model through llama.cpp: its own attention and cache writes land on the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from model_server.llama import kernels
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_SEQS, Context, ContextOptions
from model_server.llama.model import Model
from tests import random_model
from tests.model_server.kernels.problem import Floats

PROMPT = 700
TREE_PARENTS = (-1, 0, 0, 1, 1, 2, 3, 3)


@pytest.fixture(scope="module")
def model(random_q8_path: Path) -> Iterator[Model]:
    made = Model(random_q8_path, 0)
    yield made
    made.close()


@pytest.fixture(params=[("f16", "f16"), ("f16", "bf16"), ("q8_0", "q8_0")], ids="-".join)
def context(model: Model, request: pytest.FixtureRequest) -> Iterator[Context]:
    k_type, v_type = request.param
    made = Context(model, ContextOptions(2_048, MAX_SEQS, 2, k_type, v_type, "on"))
    yield made
    made.close()


def tokens(num: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 512, num)]


def decode(
    context: Context, some: Sequence[int], positions: Sequence[int], seqs: Sequence[Sequence[int]]
) -> Floats:
    batch = LlamaBatch(512, 16)
    batch.add_rows(some, positions, seqs, output=True)
    context.decode(batch)
    return np.asarray(context.logits(len(some)).copy())


def prefill(context: Context, some: Sequence[int], sizes: Sequence[int], seq: int = 0) -> Floats:
    """In chunks of these sizes."""
    logits, start = [], 0
    for size in sizes:
        chunk = some[start : start + size]
        logits.append(decode(context, chunk, range(start, start + size), [[seq]] * size))
        start += size
    return np.concatenate(logits)


def num_computed() -> tuple[int, int]:
    count = kernels.function("medusa_num_computed", ctypes.c_uint64, ctypes.c_char_p)
    return count(b"SET_ROWS"), count(b"FLASH_ATTN_EXT")


def test_the_kernels_do_it(context: Context) -> None:
    before = num_computed()
    prefill(context, tokens(20), [20])
    layers = random_model.SHAPE.num_layers
    after = num_computed()
    assert (after[0] - before[0], after[1] - before[1]) == (2 * layers, layers)


def test_chunks_change_no_bit(context: Context) -> None:
    some = tokens(PROMPT)
    whole = prefill(context, some, [500, 200])
    for sizes in ([64] * 10 + [60], [7] * 100, [512, 138, *[1] * 50]):
        context.clear()
        assert np.array_equal(prefill(context, some, sizes), whole)


def path_to(node: int) -> list[int]:
    return [*path_to(TREE_PARENTS[node]), node] if node >= 0 else []


def test_a_tree_beside_others_gives_the_logits_of_its_paths(context: Context) -> None:
    """Another request is prefilled and cut between, so that the tree's cells lie scattered."""
    prompt, drafts, others = tokens(PROMPT), tokens(8, seed=1), tokens(400, seed=2)
    leaves = [node for node in range(8) if node not in TREE_PARENTS]
    seqs = [[n for n, leaf in enumerate(leaves) if node in path_to(leaf)] for node in range(8)]
    alone = {}
    for leaf in leaves:
        context.clear()
        path = path_to(leaf)
        prefill(context, prompt, [500, 200])
        for position, node in enumerate(path):
            alone[node] = decode(context, [drafts[node]], [PROMPT + position], [[0]])[0]
    context.clear()
    prefill(context, others, [400], seq=20)
    context.remove(20, 300)
    prefill(context, prompt, [100, 90, 310, 200])
    context.remove(20, 10, 150)  # holes, filled by the tree
    for number in range(1, len(leaves)):
        context.copy(0, number, 0, PROMPT)
    rows = [drafts[node] for node in range(8)]
    depths = [len(path_to(node)) - 1 for node in range(8)]
    positions = [PROMPT + depth for depth in depths]
    for _ in range(2):  # rejected, and written again elsewhere
        logits = decode(context, [*rows, 5], [*positions, 300], [*seqs, [20]])
        for node, row in enumerate(logits[:8]):
            assert np.array_equal(row, alone[node])
        for number in range(len(leaves)):
            context.remove(number, PROMPT)
        context.remove(20, 290)
        decode(context, others[290:300], range(290, 300), [[20]] * 10)
