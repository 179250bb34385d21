from __future__ import annotations

import pytest

from tests import twin, vocabulary
from tests.model_server.sequences import MakeSequence, take
from tests.vocabulary import BOS, EOS

IDS = vocabulary.token_ids(twin.TINY.vocab_size)
BA, CA = IDS["ba"], IDS["ca"]


def test_tokens_become_text_until_the_length_is_reached(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS, BA], max_tokens=3)
    assert take(sequence, [BA, CA]) == "baca"
    assert take(sequence, [BA, CA]) == "ba"
    assert (sequence.finish_reason, sequence.num_answered) == ("length", 3)


def test_it_goes_on_while_no_rule_holds(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS, BA], max_tokens=3, stop=["zz"])
    take(sequence, [BA, CA])
    assert sequence.finish_reason is None


def test_the_end_token_ends_it_and_is_not_shown(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS, BA])
    assert take(sequence, [CA, EOS, BA]) == "ca"
    assert sequence.tokens == [BOS, BA, CA, EOS]
    assert (sequence.finish_reason, sequence.matched_stop) == ("stop", EOS)


def test_a_stop_token_ends_it(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS], stop_tokens=[CA])
    assert take(sequence, [BA, CA]) == "ba"
    assert sequence.matched_stop == CA


def test_a_stop_string_ends_it_in_the_middle_of_a_step(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS], stop=["ac"])
    assert take(sequence, [BA, CA, BA]) == "b"
    assert sequence.tokens == [BOS, BA, CA]
    assert (sequence.finish_reason, sequence.matched_stop) == ("stop", "ac")


def test_what_was_held_back_comes_with_the_last_token(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS], max_tokens=1, stop=["abb"])
    assert sequence.accept(BA) == "ba"


def test_a_stop_string_on_the_last_token_counts_as_stop(make_sequence: MakeSequence) -> None:
    sequence = make_sequence([BOS], max_tokens=1, stop=["a"])
    sequence.accept(BA)
    assert (sequence.finish_reason, sequence.matched_stop) == ("stop", "a")


@pytest.mark.parametrize(("computed", "pending"), [(0, 3), (2, 1)])
def test_pending_tokens_are_those_not_in_the_cache(
    make_sequence: MakeSequence, computed: int, pending: int
) -> None:
    sequence = make_sequence([BOS, BA, CA])
    sequence.num_computed = computed
    assert sequence.num_pending == pending
    sequence.accept(BA)
    assert sequence.num_pending == pending + 1
