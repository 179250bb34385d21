from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.engine.kv import KvCache, common_prefix
from model_server.engine.kv_ops import Clear, Copy, KvOp, Remove

NUM_SEQS = 6


class Mirror:
    """llama.cpp's side: which tokens each sequence holds after the operations."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}

    def apply(self, ops: list[KvOp]) -> None:
        for op in ops:
            match op:
                case Copy(source, target, end):
                    kept = self.held.get(target, [])
                    assert not kept or target == NUM_SEQS - 1
                    self.held[target] = self.held.get(source, [])[:end]
                case Remove(seq, start):
                    self.held[seq] = self.held.get(seq, [])[:start]
                case Clear():
                    self.held.clear()


def filled(kv: KvCache, tokens: list[int]) -> int:
    """Admit and compute a whole prompt."""
    allocation = kv.allocate(tokens)
    assert allocation is not None
    assert kv.reserve(len(tokens) - allocation.num_cached, [])
    kv.extend(allocation.seq, tokens[allocation.num_cached :])
    return allocation.seq


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 60), st.booleans())
def test_the_ledger_and_the_cache_agree_through_any_history(
    seed: int, num_cells: int, ordered: bool
) -> None:
    rng = random.Random(seed)
    kv, mirror = KvCache(num_cells, NUM_SEQS, ordered=ordered), Mirror()
    live: dict[int, list[int]] = {}
    for _ in range(40):
        tokens = [0] * rng.randint(1, 12) + [rng.randint(0, 2) for _ in range(rng.randint(0, 6))]
        action = rng.random()
        if action < 0.5 and (allocation := kv.allocate(tokens)) is not None:
            mirror.apply(allocation.ops)
            assert allocation.num_cached < len(tokens)
            live[allocation.seq] = tokens[: allocation.num_cached]
            assert mirror.held.get(allocation.seq, []) == live[allocation.seq]
            rest = tokens[allocation.num_cached :]
            ops: list[KvOp] = []
            fits = kv.reserve(len(rest), ops)
            mirror.apply(ops)
            if fits:
                kv.extend(allocation.seq, rest)
                live[allocation.seq] += rest
                mirror.held[allocation.seq] = list(live[allocation.seq])
        elif action < 0.8 and live:
            seq = rng.choice(list(live))
            mirror.apply(kv.release(seq))
            del live[seq]
        elif action < 0.9 and not live:
            mirror.apply(kv.clear_cached())
        for seq, held in live.items():
            assert mirror.held.get(seq, []) == held
        assert 0 <= kv.num_used <= num_cells
        assert kv.num_seqs_held >= len(live)
    for seq in list(live):
        mirror.apply(kv.release(seq))
    mirror.apply(kv.clear_cached())
    assert kv.num_seqs_held == 0
    assert not any(mirror.held.get(seq) for seq in range(NUM_SEQS - ordered))
    if ordered:
        mirror.apply(kv.clear())
    assert kv.num_used == 0
    assert not any(mirror.held.values())


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40),
       st.integers(0, 40))  # fmt: skip
def test_the_common_prefix_is_that_of_a_plain_loop(
    left: list[int], right: list[int], shared: int
) -> None:
    left = right[:shared] + left
    plain = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    assert common_prefix(left, right) == plain


def test_a_shared_prefix_takes_its_cells_once() -> None:
    kv = KvCache(200, 16)
    prompts = [[*range(50), 100 + i] for i in range(8)]
    for prompt in prompts:
        filled(kv, prompt)
    assert kv.num_used == 50 + 8
    assert kv.num_not_live == 200 - 58


def test_shared_cells_are_free_for_others_once_their_last_holder_ends() -> None:
    kv = KvCache(100, 16)
    first, second = (filled(kv, [*range(50), 100 + i]) for i in range(2))
    assert kv.match_live([*range(50), 99]) == 50
    kv.release(first)
    assert kv.num_not_live == 100 - 51
    kv.release(second)
    assert kv.num_not_live == 100
    assert kv.match_live([*range(50), 99]) == 0


@pytest.mark.parametrize("windowed", [False, True])
def test_a_turn_can_be_asked_again(windowed: bool) -> None:
    """Of the longer chat nothing can be shared in part where layers see a window."""
    kv = KvCache(200, 16, windowed=windowed)
    first, more = list(range(40)), list(range(50, 80))
    kv.release(filled(kv, first))
    kv.release(filled(kv, [*first, *more]))
    assert kv.match([*first, *more]) == (40 if windowed else 69)
    assert kv.num_used == 70
    kv.release(filled(kv, [*first, *more]))  # the same again is kept once
    assert kv.num_seqs_held == (2 if windowed else 1)


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    kv = KvCache(100, 4)
    filled(kv, list(range(20)))
    assert kv.match(list(range(20))) == 19


@pytest.mark.parametrize(("shared", "cached"), [(7, 0), (8, 8)])
def test_short_matches_are_not_worth_it(shared: int, cached: int) -> None:
    kv = KvCache(100, 4)
    filled(kv, list(range(20)))
    assert kv.match([*range(shared), 99, 99]) == cached


def test_prefixes_that_share_no_more_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting requests ask each step; long prompts behind one system prompt are all alike."""
    kv = KvCache(10_000, 64)
    for i in range(32):
        kv.release(filled(kv, [7] * 100 + [20 + i] * 20))
    compared: list[int] = []

    def counted(left: list[int], right: list[int]) -> int:
        compared.append(1)
        return common_prefix(left, right)

    monkeypatch.setattr("model_server.engine.kv.common_prefix", counted)
    assert kv.match([7] * 100 + [60] * 50) == 100
    assert len(compared) == 1
    assert kv.match([7] * 100 + [51] * 50) == 120
    assert len(compared) == 3


def test_a_finished_request_stays_cached_until_its_cells_are_needed() -> None:
    kv = KvCache(40, 4)
    seq = filled(kv, list(range(20)))
    assert kv.release(seq) == []
    assert (kv.num_used, kv.num_not_live) == (20, 40)
    ops: list[KvOp] = []
    assert kv.reserve(40, ops)
    assert ops == [Remove(seq)]
    assert kv.num_used == 0


def test_the_oldest_use_goes_first() -> None:
    kv = KvCache(60, 8)
    first, second = (filled(kv, list(range(start, start + 20))) for start in (0, 100))
    for seq in (first, second):
        kv.release(seq)
    kv.allocate([*range(10), 99])  # uses the first
    ops: list[KvOp] = []
    assert kv.reserve(25, ops)
    assert ops == [Remove(second)]


def test_a_prefix_that_another_covers_is_not_kept_twice() -> None:
    kv = KvCache(100, 8)
    short, long = filled(kv, list(range(12))), filled(kv, list(range(20)))
    kv.release(long)
    assert kv.release(short) == [Remove(short)]
    assert kv.num_seqs_held == 1


def test_a_longer_prefix_replaces_what_it_covers() -> None:
    kv = KvCache(100, 8)
    short, long = filled(kv, list(range(12))), filled(kv, list(range(20)))
    kv.release(short)
    assert kv.release(long) == [Remove(short)]


def test_with_all_ids_live_nobody_is_admitted() -> None:
    kv = KvCache(100, 2)
    for start in (0, 100):
        filled(kv, list(range(start, start + 10)))
    assert kv.allocate(list(range(200, 210))) is None


def test_with_all_ids_cached_the_oldest_gives_its_own() -> None:
    kv = KvCache(100, 2)
    seqs = [filled(kv, list(range(start, start + 10))) for start in (0, 100)]
    for seq in seqs:
        kv.release(seq)
    allocation = kv.allocate([*range(10), 99])  # like the oldest, which is kept as the source
    assert allocation is not None
    assert allocation.ops == [Remove(seqs[1]), Copy(seqs[0], seqs[1], 10)]


def test_computing_beyond_what_was_reserved_is_a_bug() -> None:
    kv = KvCache(4, 2)
    allocation = kv.allocate([1, 2])
    assert allocation is not None
    with pytest.raises(AssertionError, match="bug"):
        kv.extend(allocation.seq, [1] * 5)


def test_an_ordered_pool_does_not_use_a_cell_again_before_it_is_cleared() -> None:
    kv = KvCache(40, 4, ordered=True)
    seq = filled(kv, list(range(20)))
    kv.release(seq)
    assert kv.num_reservable == 20
    assert not kv.reserve(21, [])
    assert kv.clear() == [Clear()]
    assert kv.reserve(40, [])


def test_a_prefix_is_shared_with_the_same_owner_alone() -> None:
    kv = KvCache(200, 8)
    tokens = list(range(50))

    def check() -> None:
        assert kv.match(tokens, "ann") == 49
        assert kv.match(tokens, "bob") == kv.match(tokens) == kv.match_live(tokens, "bob") == 0
        of_bob = kv.allocate(tokens, "bob")
        assert of_bob is not None
        assert of_bob.num_cached == 0
        kv.release(of_bob.seq, keep=False)

    running = kv.allocate(tokens, "ann")
    assert running is not None
    assert kv.reserve(50, [])
    kv.extend(running.seq, tokens)
    check()
    kv.release(running.seq)
    check()


def test_the_same_tokens_of_two_owners_are_kept_for_both() -> None:
    kv = KvCache(200, 8)
    tokens = list(range(50))
    for owner in ("ann", "bob"):
        allocation = kv.allocate(tokens, owner)
        assert allocation is not None
        assert allocation.num_cached == 0
        assert kv.reserve(50, [])
        kv.extend(allocation.seq, tokens)
        kv.release(allocation.seq)
    assert kv.match(tokens, "ann") == kv.match(tokens, "bob") == 49
