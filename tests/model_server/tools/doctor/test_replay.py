"""Trees replayed along answers: a case by hand, and the engine's own steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_server.engine.cost import Costs
from model_server.medusa.heads import Heads
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.drafter import Drafter
from model_server.speculation.tree import Candidates
from model_server.tools.doctor.replay import TREE_ROWS, accepted, walk
from model_server.tools.doctor.track import Track, follow
from tests import twin, twin_heads
from tests.model_server.drafters import drafts
from tests.model_server.engine.stack import Layout, Stack, stack
from tests.model_server.tools.doctor.tracks import track
from tests.twin_heads import PUBLISHED, Options


def at(found: list[int], rows: int) -> int:
    return found[TREE_ROWS.index(rows)]


def test_the_path_that_came_is_found_as_the_tree_grows() -> None:
    """Nodes by probability: 7 (0.6), 7-5 (0.48), 8 (0.3), 8-5 (0.24), 7-6 (0.06), 8-6 (0.03)."""
    by_depth = [[(7, 0.6), (8, 0.3)], [(5, 0.8), (6, 0.1)]]
    candidates = Candidates(by_depth, (), max_depth=2, max_leaves=9)
    assert [at(accepted(candidates, [7, 5]), rows) for rows in (1, 2, 3, 64)] == [0, 1, 2, 2]
    assert [at(accepted(candidates, [8, 6]), rows) for rows in (3, 4, 6, 8)] == [0, 1, 1, 2]
    assert [at(accepted(candidates, [7, 6]), rows) for rows in (2, 3, 4, 6)] == [1, 1, 1, 2]
    assert at(accepted(candidates, [9, 5]), 64) == 0
    # One leaf: a chain, which 7-5 is.
    chain = candidates._replace(max_leaves=1)
    assert at(accepted(chain, [8, 5]), 64) == 0


def test_a_walk_jumps_ahead_by_what_was_accepted() -> None:
    """One head: its candidate is right behind the tokens 1 and 3, but 2 is jumped over."""
    answer = [1, 2, 3, 4, 5]
    one = track(answer, [[2]], [[3]], [[9]], [[5]])
    found = walk([one], HeadConfidence(1), most_leaves=8)
    plain, two_rows = found[0, 0], found[0, TREE_ROWS.index(2)]
    assert plain.tolist() == [4, 4]
    # From 1 on by two tokens (2 was drafted), from 3 by one, from 4 by two: 5 tokens in 3 steps.
    assert two_rows.tolist() == [5, 3]


def test_no_step_begins_where_the_deepest_heads_token_is_unknown() -> None:
    one = track([1, 2, 3], [[2], [3]], [[3], [9]])
    found = walk([one, track([1, 2], [[2], [9]])], HeadConfidence(2), most_leaves=8)
    assert found[:, TREE_ROWS.index(8)].tolist() == [[2, 1], [3, 1]]


NUM_TOKENS = 60


def recorded(made: Stack, heads: Heads, name: str, prompt: list[int]) -> Track:
    """What the engine's answer would have given the doctor: the twin's states are embeddings."""
    answer = made.answer(name)[:NUM_TOKENS]
    states = twin.embeddings(np.array([prompt[-1], *answer[:-2]]), twin.TINY)
    asked, said = np.array(prompt, np.int32), np.array(answer, np.int32)
    return follow(heads, states.astype(np.float32), asked, said)


@pytest.mark.parametrize("rows", [2, 8, 64])
def test_a_walk_takes_the_steps_that_the_engine_takes(
    rows: int, twin_path: Path, tmp_path: Path
) -> None:
    """With confidences that stay as they are. Nothing repeats, so that nothing is looked up."""
    path = twin_heads.write(
        tmp_path / "heads.gguf", options=Options(replace(PUBLISHED, spread=0.5))
    )
    loaded: list[tuple[Heads, HeadConfidence]] = []

    def make(costs: Costs, heads: Heads | None) -> Drafter:
        drafter = drafts(rows=rows)(costs, heads)
        confidence = drafter.policy.confidence
        confidence.observe = lambda scored: None  # type: ignore[method-assign]
        assert heads is not None
        loaded.append((heads, confidence))
        return drafter

    layout = Layout(num_cells=4_096, num_slots=4, max_step_s=0.1, heads=path)
    with stack(twin_path, layout, make) as made:
        greedy = {"temperature": 0}
        prompts = [twin.prompt(2, seed=seed) for seed in range(12)]
        for number, prompt in enumerate(prompts):
            made.submit(
                str(number), prompt, max_tokens=NUM_TOKENS + 1, ignore_eos=True, sampling=greedy
            )
        made.run()
        (heads, confidence), num_heads = loaded[0], PUBLISHED.num_heads
        tokens = steps = 0
        for number in range(len(prompts)):
            position = 0
            # The first step has no drafts; the last ones may be cut short by the answer's end.
            for step in made.steps(str(number))[1:]:
                if position + num_heads >= NUM_TOKENS:
                    break
                tokens, steps = tokens + len(step.ids), steps + 1
                position += len(step.ids)
        tracks = [recorded(made, heads, str(n), prompt) for n, prompt in enumerate(prompts)]
        found = walk(tracks, confidence, most_leaves=made.scheduler.kv.leaves.most)
    assert found[-1, TREE_ROWS.index(rows)].tolist() == [tokens, steps]
    assert tokens > 1.3 * steps
