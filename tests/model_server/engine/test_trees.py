"""Draft trees in the engine: every row is that of plain decoding, and so is every answer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import llama_cpp
import pytest

from model_server.engine.cost import Costs
from model_server.engine.plan import Plan
from model_server.medusa.heads import Heads
from tests.model_server.drafters import RandomDrafter
from tests.model_server.engine.schedules import (
    largest_difference,
    random_requests,
    random_schedule,
)
from tests.model_server.engine.stack import EXACT, Layout, Stack, stack
from tests.reference import TYPE_BF16, Reference

SMALL_POOL = Layout(num_cells=144, num_slots=6)
EXACT_POOL = Layout(num_cells=1_024, num_slots=4, kv=EXACT, ordered=True)
NUM_SEEDS = 14

EXACT_REFERENCE = {
    "flash_attention": True,
    "type_k": llama_cpp.GGML_TYPE_F16,
    "type_v": TYPE_BF16,
}

Answers = dict[str, list[int]]


@pytest.fixture(scope="module")
def reference(random_model_path: Path) -> Iterator[Reference]:
    with Reference(random_model_path) as made:
        yield made


def plain_answers(path: Path, layout: Layout, seeds: range) -> Answers:
    """What the requests of random schedules are answered without drafts."""
    with stack(path, layout) as made:
        for seed in seeds:
            for name, request in random_requests(seed).items():
                made.submit(name, **request)  # type: ignore[arg-type]
            made.run()
        return {name: made.answer(name) for name in made.events}


@contextmanager
def drafting(path: Path, layout: Layout, known: Answers, max_nodes: int) -> Iterator[Stack]:
    def make(costs: Costs, _heads: Heads | None) -> RandomDrafter:
        return RandomDrafter(costs, known, max_nodes)

    with stack(path, layout, make) as made:
        yield made


def check_answers(made: Stack, known: Answers) -> int:
    """Finished answers are the known ones, cancelled ones begin like them; accepted drafts."""
    for name, events in made.events.items():
        assert made.answer(name) == known[name][: len(made.answer(name))]
        if events[-1].event == "done":
            assert made.answer(name) == known[name]
    return made.num_accepted()


def test_rows_of_random_schedules_with_trees(random_model_path: Path, reference: Reference) -> None:
    """Shared prefixes, cancels and preemptions beside trees of up to 12 nodes."""
    known = plain_answers(random_model_path, SMALL_POOL, range(NUM_SEEDS))
    worst = 0.0
    with drafting(random_model_path, SMALL_POOL, known, 12) as made:
        for seed in range(NUM_SEEDS):
            made.verifier.rows.clear()
            random_schedule(made, seed)
            worst = max(worst, largest_difference(made, reference))
        accepted = check_answers(made, known)
        assert made.num_leaks() == 0
    assert worst < 1e-5
    assert accepted > 100
    assert made.scheduler.num_preemptions >= 20
    print(f"worst {worst:.1e}, {accepted} accepted, {made.scheduler.num_preemptions} preemptions")


@pytest.mark.parametrize("max_nodes", [3, 8, 24, 64])
def test_rows_of_trees_of_any_size(
    random_model_path: Path, reference: Reference, max_nodes: int
) -> None:
    """Four requests at once, up to 63 draft nodes each."""
    layout = Layout(num_cells=1_536, num_slots=4)
    known = plain_answers(random_model_path, layout, range(1))
    with drafting(random_model_path, layout, known, max_nodes) as made:
        for name, request in list(random_requests(0).items())[:4]:
            made.submit(name, **{**request, "max_tokens": 12})  # type: ignore[arg-type]
        made.run()
        assert largest_difference(made, reference) < 1e-5
        assert made.num_leaks() == 0


def test_exact_mode_keeps_every_row_to_the_bit(random_q8_path: Path) -> None:
    """Trees beside others, in an ordered pool that starts over: no difference at all."""
    known = plain_answers(random_q8_path, EXACT_POOL, range(6))
    with (
        drafting(random_q8_path, EXACT_POOL, known, 24) as made,
        Reference(random_q8_path) as fresh,
    ):
        for seed in range(6):
            made.verifier.rows.clear()
            random_schedule(made, seed)
            assert largest_difference(made, fresh, EXACT_REFERENCE) == 0
        assert check_answers(made, known) > 50
        assert made.scheduler.num_preemptions > 0


def test_a_wrong_mask_would_be_seen(random_model_path: Path, reference: Reference) -> None:
    """The checks above can fail: with the ids of two ends exchanged, rows differ."""
    known = plain_answers(random_model_path, SMALL_POOL, range(1))
    with drafting(random_model_path, SMALL_POOL, known, 12) as made:
        made.runner.run, run = lambda plan: run(_crossed(plan)), made.runner.run  # type: ignore[method-assign]
        random_schedule(made, 0)
        assert largest_difference(made, reference) > 1e-3


def _crossed(plan: Plan) -> Plan:
    """Exchange the ids of two ends at one depth behind different parents, where there are such."""
    decode = []
    for decoded in plan.decode:
        tree = copy.deepcopy(decoded.tree)
        ends = [node for node, below in enumerate(tree.children) if not below]
        for one, other in combinations(ends, 2):
            if tree.depths[one] == tree.depths[other] and tree.parents[one] != tree.parents[other]:
                tree.leaves[one], tree.leaves[other] = tree.leaves[other], tree.leaves[one]
                break
        decode.append(decoded._replace(tree=tree))
    return plan._replace(decode=decode)
