from __future__ import annotations

from model_server.tools.doctor.scored import accuracy, score
from tests.model_server.tools.doctor.tracks import track

# Two heads with two candidates each, behind the tokens 1, 2 and 3 of an answer.
HAND = track([1, 2, 3, 4], [[2, 9], [9, 3]], [[9, 8], [4, 9]], [[9, 4], [7, 8]])


def test_targets_are_what_came_where_each_head_proposed() -> None:
    assert HAND.targets.tolist() == [[2, 3], [3, 4], [4, -1]]


def test_each_head_is_scored_alone_and_behind_right_ones() -> None:
    found = accuracy(score([HAND]))
    assert found.alone == ((1 / 3, 2 / 3), (0.5, 1.0))
    assert found.num_alone == (3, 2)
    # Behind the token 2 head 0 was wrong: there head 1 is not asked.
    assert found.behind_right == ((1 / 3, 2 / 3), (0.0, 1.0))
    assert found.num_behind_right == (3, 1)


def test_several_tracks_are_scored_together_and_ends_do_not_mix() -> None:
    other = track([5, 6], [[6, 9], [1, 2]])
    found = accuracy(score([HAND, other]))
    assert found.alone == ((0.5, 0.75), (0.5, 1.0))
    assert found.num_alone == (4, 2)


def test_a_head_that_was_never_reached_has_no_shares() -> None:
    found = accuracy(score([track([1, 2, 3], [[9], [3]], [[9], [9]])]))
    assert found.behind_right == ((0.0,), ())


def test_heads_that_name_the_token_before_their_own_are_late() -> None:
    assert accuracy(score([track([1, 2, 3], [[1], [1]], [[3], [2]])])).late == 0.5
