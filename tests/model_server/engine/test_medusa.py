"""Heads in the engine, on twins whose heads are right as often as asked: what is drafted pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server.engine.cost import Costs, HeadCosts
from model_server.medusa.heads import Heads
from model_server.speculation.drafter import Drafter
from model_server.speculation.policy import Load
from tests import twin, twin_heads
from tests.model_server.drafters import StaticDrafter, drafts
from tests.model_server.engine.stack import Layout, Stack, stack
from tests.twin_heads import NONE, PUBLISHED, Accuracy, Options

GREEDY = {"temperature": 0}
ROOMY = Layout(num_cells=4_096, num_slots=8, max_step_s=0.1)


def heads(folder: Path, accuracy: Accuracy, name: str = "heads") -> Path:
    return twin_heads.write(folder / f"{name}.gguf", options=Options(accuracy))


def ask(made: Stack, num_requests: int, num_tokens: int, **fields: object) -> None:
    for index in range(num_requests):
        made.submit(
            str(index),
            twin.prompt(12 + index, seed=index),
            max_tokens=num_tokens,
            ignore_eos=True,
            sampling=GREEDY,
            **fields,
        )
    made.run()
    for index in range(num_requests):
        expected = twin.answer(twin.prompt(12 + index, seed=index), num_tokens, ignore_eos=True)
        assert made.answer(str(index)) == expected


def ask_briefly(made: Stack) -> None:
    """Short answers from many places, so that nothing can be copied from the context."""
    for index in range(16):
        prompt = twin.prompt(2, seed=index)
        made.submit(str(index), prompt, max_tokens=60, ignore_eos=True, sampling=GREEDY)
    made.run()


def tokens_per_step(made: Stack) -> float:
    """Of the steps that drafted, over all requests."""
    stats = [made.ending(name).speculation for name in made.events]  # type: ignore[union-attr]
    steps = [each.num_spec_steps for each in stats if each]
    return sum(e.mean_acceptance_length * e.num_spec_steps for e in stats if e) / sum(steps)


@pytest.mark.parametrize("rows", [2, 4, 8, 16, 64])
def test_trees_get_the_tokens_that_the_accuracies_imply(
    rows: int, twin_path: Path, tmp_path: Path
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED), num_slots=4)
    with stack(twin_path, layout, drafts(rows=rows)) as made:
        ask_briefly(made)
        implied = twin_heads.expected_tokens_per_step(PUBLISHED, rows)
        print(f"{rows} rows: {tokens_per_step(made):.3f} tokens a step, implied {implied:.3f}")
        assert tokens_per_step(made) >= 0.97 * implied


def best_static_tree(accuracy: Accuracy, num_rows: int) -> list[tuple[int, ...]]:
    """The likeliest paths of ranks in the mean over both kinds of tokens, parents first."""
    shares = np.diff(accuracy.by_kind(), axis=2, prepend=0.0)

    def value(path: tuple[int, ...]) -> float:
        return float(shares[:, range(len(path)), path].prod(axis=1).mean())

    found: list[tuple[int, ...]] = []
    open_ends: list[tuple[int, ...]] = [(0,)]
    while len(found) < num_rows - 1:
        path = max(open_ends, key=value)
        open_ends.remove(path)
        found.append(path)
        if len(path) < accuracy.num_heads:
            open_ends.append((*path, 0))
        if path[-1] + 1 < twin_heads.NUM_RANKS:
            open_ends.append((*path[:-1], path[-1] + 1))
    return found


def test_dynamic_trees_win_over_the_best_static_one(twin_path: Path, tmp_path: Path) -> None:
    """Where some tokens are sure and others are not: deep trees behind the sure ones."""
    accuracy = Accuracy(PUBLISHED.cumulative, spread=1.0)
    layout = replace(ROOMY, heads=heads(tmp_path, accuracy))

    def static(costs: Costs, loaded: Heads | None) -> StaticDrafter:
        policy = drafts()(costs, loaded).policy
        return StaticDrafter(policy, best_static_tree(accuracy, 8))

    won = []
    for make_drafter in (static, drafts(rows=8)):
        with stack(twin_path, layout, make_drafter) as made:
            ask_briefly(made)
            won.append(tokens_per_step(made))
    print(f"8 rows: static {won[0]:.3f} tokens a step, dynamic {won[1]:.3f}")
    assert won[1] >= 1.05 * won[0]


def test_good_heads_are_used_where_rows_cost_little(twin_path: Path, tmp_path: Path) -> None:
    flat = {1: 0.001, 512: 0.0012}
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED), step_s=flat)
    with stack(twin_path, layout, drafts()) as made:
        ask(made, 2, 150)
        stats = made.ending("0").speculation  # type: ignore[union-attr]
        assert stats is not None
        rows = 1 + stats.num_draft_tokens / stats.num_spec_steps
        assert rows >= 16
        assert stats.mean_acceptance_length > 2


def test_nothing_is_drafted_where_every_row_costs_a_step(twin_path: Path, tmp_path: Path) -> None:
    steep = {1: 0.01, 512: 5.12}
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED), step_s=steep)
    with stack(twin_path, layout, drafts()) as made:
        ask(made, 2, 150)
        assert drafted(made) == 0


def drafted(made: Stack) -> int:
    stats = [made.ending(name).speculation for name in made.events]  # type: ignore[union-attr]
    return sum(each.num_draft_tokens for each in stats if each)


def test_heads_of_another_model_are_given_up_with_a_word(
    twin_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, NONE), step_s={1: 0.001, 512: 0.01})
    with stack(twin_path, layout, drafts(rows=4)) as made:
        ask(made, 2, 150)
        alarm = made.scheduler.drafter.alarm
    warning = alarm.warning
    assert warning is not None
    assert alarm.share < 0.02
    assert "MEDUSA_PATH" in warning
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("accuracy", "sampling", "is_warned"),
    [
        (NONE, {"temperature": 0.7, "top_p": 0.9}, True),
        (PUBLISHED, {"temperature": 10}, False),
        (PUBLISHED, {**GREEDY, "logit_bias": {5: 100}}, False),
        (PUBLISHED, {**GREEDY, "repeat_penalty": 10}, False),
        (PUBLISHED, {**GREEDY, "regex": "(xy){200}"}, False),
    ],
)
def test_heads_are_judged_by_what_the_model_would_say(
    accuracy: Accuracy, sampling: dict[str, Any], is_warned: bool, twin_path: Path, tmp_path: Path
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, accuracy), step_s={1: 0.001, 512: 0.01})
    with stack(twin_path, layout, drafts(rows=4)) as made:
        for index in range(4):
            prompt = twin.prompt(12, seed=index)
            made.submit(str(index), prompt, max_tokens=300, sampling=sampling)
        made.run()
        alarm = made.scheduler.drafter.alarm
    assert (alarm.warning is not None) == is_warned == np.isfinite(alarm.share)


@pytest.mark.parametrize(
    ("options", "wanted", "most"),
    [
        ({"mode": "off"}, {}, 1),
        ({}, {"mode": "off"}, 1),
        ({"max_tokens_per_step": 1}, {}, 1),
        ({"rows": 8}, {"max_tokens_per_step": 2}, 2),
        ({"rows": 8, "max_tokens_per_step": 3}, {}, 3),
        ({"rows": 8}, {}, 6),
    ],
)
def test_caps_hold_for_the_process_and_for_a_request(
    options: dict[str, Any], wanted: dict[str, Any], most: int, twin_path: Path, tmp_path: Path
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED))
    with stack(twin_path, layout, drafts(**options)) as made:
        ask(made, 2, 60, speculation=wanted)
        steps = made.steps("0")
    assert max(len(step.ids) for step in steps) <= most
    assert (max(len(step.ids) for step in steps) > 1) == (most > 1)


def test_a_chain_has_one_leaf_and_a_forced_tree_drafts_where_it_does_not_pay(
    twin_path: Path, tmp_path: Path
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED), step_s={1: 0.01, 512: 5.12})
    with stack(twin_path, layout, drafts()) as made:
        for mode in ("chain", "tree", "auto"):
            made.submit(
                mode,
                twin.prompt(9),
                max_tokens=60,
                ignore_eos=True,
                sampling=GREEDY,
                speculation={"mode": mode},
            )
        made.run()
        stats = {name: made.ending(name).speculation for name in made.events}  # type: ignore[union-attr]
    assert stats["auto"] is None
    assert stats["chain"]
    assert stats["tree"]
    assert min(stats["chain"].num_spec_steps, stats["tree"].num_spec_steps) > 20


@pytest.mark.parametrize("mode", ["chain", "tree"])
def test_a_forced_request_drafts_in_every_step_though_heads_were_given_up(
    mode: str, twin_path: Path, tmp_path: Path
) -> None:
    def dear(costs: Costs, loaded: Heads | None) -> Drafter:
        head_costs = HeadCosts({number: {1: 1.0} for number in range(1, 6)})
        return drafts(lookup=False)(replace(costs, heads=head_costs), loaded)

    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED), step_s={1: 0.01, 512: 5.12})
    with stack(twin_path, layout, dear) as made:
        ask(made, 1, 150)  # enough to see that they don't pay
        assert made.scheduler.drafter.policy.num_heads(Load(1, 0, 63)) == 0
        made.events.clear()
        ask(made, 1, 150, speculation={"mode": mode})
        stats = made.ending("0").speculation  # type: ignore[union-attr]
        assert stats is not None
        # The first has no proposals yet, and the last may have room for one token only.
        assert stats.num_spec_steps >= len(made.steps("0")) - 2


def test_what_is_accepted_is_told_token_by_token(twin_path: Path, tmp_path: Path) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED))
    with stack(twin_path, layout, drafts(rows=6)) as made:
        ask(made, 3, 80, logprobs=2)
        for name in made.events:
            steps = made.steps(name)
            accepted = [sum(step.from_draft) for step in steps]
            for step in steps:
                assert len(step.from_draft) in (0, len(step.ids))
                assert step.logprobs is not None
                assert [each.id for each in step.logprobs] == step.ids
            stats = made.ending(name).speculation  # type: ignore[union-attr]
            assert stats is not None
            assert stats.num_accepted_draft_tokens == sum(accepted)
            assert sum(stats.acceptance_histogram) == stats.num_spec_steps
            counted = [accepted.count(j) for j in range(1, len(stats.acceptance_histogram))]
            assert stats.acceptance_histogram[1:] == counted
            at_least = [sum(a > j for a in accepted) for j in range(len(counted))]
            assert stats.num_accepted_tokens_per_pos == at_least
        assert made.num_leaks() == 0


@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 0.8, "seed": 5, "top_p": 0.9}])
def test_a_copied_context_is_drafted_without_heads(
    sampling: dict[str, Any], twin_path: Path
) -> None:
    """The answer repeats what the prompt quotes; with a seed, as far as it happens to."""
    start = twin.prompt(5)[-1]
    prompt = [*twin.prompt(5), *twin.answer([start], 80), 3, start]
    flat = {1: 0.001, 512: 0.0012}
    answers = []
    for options in ({"mode": "off"}, {}):
        with stack(twin_path, replace(ROOMY, step_s=flat), drafts(**options)) as made:
            made.submit("a", prompt, max_tokens=70, ignore_eos=True, sampling=sampling)
            made.run()
            answers.append(made.answer("a"))
            stats = made.ending("a").speculation  # type: ignore[union-attr]
    assert answers[0] == answers[1]
    assert stats is not None
    if sampling is GREEDY:
        assert stats.mean_acceptance_length > 5


def test_heads_without_numbers_for_one_request_cost_no_answer(
    twin_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = replace(ROOMY, heads=heads(tmp_path, PUBLISHED))
    with stack(twin_path, layout, drafts(rows=8)) as made:
        hidden = made.context.hidden

        def spoiled(num_rows: int) -> Any:
            states = hidden(num_rows).copy()
            states[0] = np.nan  # of the first request's root
            return states

        monkeypatch.setattr(made.context, "hidden", spoiled)
        ask(made, 3, 40)
        assert made.num_accepted() > 0
        assert made.num_leaks() == 0
