"""Trees as clients are shown them, on a twin whose every token and every draft is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_server.contract.protocol import ShownTree, Tokens
from tests import twin, twin_heads
from tests.model_server.drafters import drafts
from tests.model_server.engine.stack import Layout, stack
from tests.twin_heads import Options

PROMPT = twin.prompt(12)
NUM_TOKENS = 60
OPTIONS = Options()


def steps(model: Path, folder: Path, **speculation: Any) -> list[Tokens]:
    heads = twin_heads.write(folder / "heads.gguf", options=OPTIONS)
    layout = replace(Layout(num_cells=4_096, max_step_s=0.1), heads=heads)
    with stack(model, layout, drafts(rows=6, lookup=False)) as made:
        made.submit(
            "a",
            PROMPT,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            sampling={"temperature": 0},
            speculation=speculation,
        )
        made.run()
        return made.steps("a")


def tree_of(step: Tokens) -> ShownTree:
    assert step.tree is not None
    return step.tree


def depths(tree: ShownTree) -> list[int]:
    found = [0]
    for parent in tree.parents[1:]:
        found.append(found[parent] + 1)
    return found


def test_a_shown_tree_holds_what_the_heads_are_known_to_draft(
    twin_path: Path, tmp_path: Path
) -> None:
    text, num_nodes = list(PROMPT), []
    for step in steps(twin_path, tmp_path, show_tree=True):
        tree = tree_of(step)
        known = twin_heads.candidates(text[-2:-1], twin.TINY, OPTIONS)[0]
        assert tree.token_ids[0] == text[-1]
        for token, depth in list(zip(tree.token_ids, depths(tree), strict=True))[1:]:
            assert token in known[depth - 1]
        num_nodes.append(len(tree.token_ids))
        text += step.ids
    assert max(num_nodes) == 6
    assert text[len(PROMPT) :] == twin.answer(PROMPT, NUM_TOKENS, ignore_eos=True)


def test_it_says_which_nodes_came_and_how_likely_they_were(twin_path: Path, tmp_path: Path) -> None:
    num_accepted = 0
    for step in steps(twin_path, tmp_path, show_tree=True):
        tree = tree_of(step)
        drafted = step.from_draft or [False] * len(step.ids)
        came = [token for token, flag in zip(step.ids, drafted, strict=True) if flag]
        assert [tree.token_ids[node] for node in tree.accepted] == came
        assert [tree.parents[node] for node in tree.accepted] == [0, *tree.accepted][: len(came)]
        assert tree.probabilities == sorted(tree.probabilities, reverse=True)
        assert tree.probabilities[0] == 1
        assert tree.texts == [twin.text([token]) for token in tree.token_ids]
        num_accepted += len(came)
    assert num_accepted > 10


@pytest.mark.parametrize(("mode", "most_rows"), [("off", 1), ("chain", 6)])
def test_plain_steps_and_chains_are_trees_too(
    mode: str, most_rows: int, twin_path: Path, tmp_path: Path
) -> None:
    trees = [tree_of(step) for step in steps(twin_path, tmp_path, mode=mode, show_tree=True)]
    assert max(len(tree.token_ids) for tree in trees) == most_rows
    assert all(tree.parents == list(range(-1, len(tree.parents) - 1)) for tree in trees)


def test_nobody_is_shown_a_tree_who_did_not_ask(twin_path: Path, tmp_path: Path) -> None:
    heard = steps(twin_path, tmp_path)
    assert sum(sum(step.from_draft) for step in heard) > 10
    assert [step.tree for step in heard] == [None] * len(heard)
    assert "tree" not in heard[0].model_dump_json(exclude_none=True)
