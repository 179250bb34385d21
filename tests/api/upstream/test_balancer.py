import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.upstream.balancer import (
    CHUNK_CHARS,
    CHUNK_TOKENS,
    FIRST_SHARE,
    MAX_CHUNKS,
    SLOW_START_S,
    ServerLoad,
    choose,
    chunks,
)
from model_server.contract.protocol import GenerateRequest, Message

LATER = 1_000.0  # when nobody starts slowly any more


def asking(**prompt: object) -> GenerateRequest:
    return GenerateRequest.model_validate({"id": "a", **prompt})


def place(outstanding: int = 0, *, slots: int = 8, opened: float = 0.0) -> ServerLoad:
    made = ServerLoad()
    made.open(slots, 8_192, opened)
    made.outstanding = outstanding
    return made


def holding(prompt: list[int], outstanding: int = 0, slots: int = 8) -> ServerLoad:
    made = place(outstanding, slots=slots)
    made.take(prompt, 0.0)
    made.outstanding = outstanding
    return made


def remembering(num_chunks: int) -> ServerLoad:
    made = ServerLoad()
    made.open(8, num_chunks * CHUNK_TOKENS, 0.0)
    return made


def spread(places: list[ServerLoad], num_requests: int, now: float = LATER) -> list[int]:
    """How many of these requests each place gets, all of them held."""
    counts = [0] * len(places)
    for turn in range(num_requests):
        chosen = choose(places, [], now)
        places[chosen].take([], now + turn / 1_000)
        counts[chosen] += 1
    return counts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a" * CHUNK_CHARS + "b"}, {"prompt": "a" * CHUNK_CHARS + "c"}),
        (
            {"prompt_tokens": [*range(CHUNK_TOKENS), 1]},
            {"prompt_tokens": [*range(CHUNK_TOKENS), 2]},
        ),
        (
            {"messages": [Message(role="system", content="a" * 200)]},
            {
                "messages": [
                    Message(role="system", content="a" * 200),
                    Message(role="user", content="b"),
                ]
            },
        ),
    ],
)
def test_what_begins_alike_shares_its_first_chunk(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert len(chunks(asking(**one))) == 1
    assert chunks(asking(**one)) == chunks(asking(**other))[:1]


def test_a_chunk_stands_for_all_before_it() -> None:
    same = "s" * CHUNK_CHARS
    first = chunks(asking(prompt="a" * CHUNK_CHARS + same))
    second = chunks(asking(prompt="b" * CHUNK_CHARS + same))
    assert not set(first) & set(second)


def test_roles_are_part_of_a_chat() -> None:
    system, user = (
        chunks(asking(messages=[Message(role=role, content="a" * 200)]))
        for role in ("system", "user")
    )
    assert system != user


def test_short_prompts_have_no_chunk_and_long_ones_not_too_many() -> None:
    assert chunks(asking(prompt="a" * (CHUNK_CHARS - 1))) == []
    assert len(chunks(asking(prompt="a" * CHUNK_CHARS))) == 1
    assert len(chunks(asking(prompt="ab" * MAX_CHUNKS * CHUNK_CHARS))) == MAX_CHUNKS


def test_as_much_is_known_as_was_sent() -> None:
    server = remembering(10)
    server.take([1, 2, 3], LATER)
    known = [server.num_held(each) for each in ([1, 2, 3, 4], [1, 2, 9], [9, 20, 30], [])]
    assert known == [3, 2, 0, 0]


def test_the_ends_of_old_prompts_are_forgotten_first() -> None:
    server = remembering(4)
    server.take([1, 2, 3], LATER)
    server.take([1, 20, 30], LATER)
    assert len(server._chunks) == 4
    assert server.num_held([1, 20, 30]) == 3
    assert server.num_held([1, 2, 3]) == 2


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=30),
    st.integers(0, 12),
)
def test_what_is_known_is_known_from_the_start(prompts: list[list[int]], limit: int) -> None:
    """The search by halves finds what a search from the start would."""
    server = remembering(limit)
    paths = [[hash(tuple(each[: n + 1])) for n in range(len(each))] for each in prompts]
    for path in paths:
        server.take(path, LATER)
        assert len(server._chunks) <= limit
        for other in paths:
            known = [server.num_held([chunk]) == 1 for chunk in other]
            assert known == sorted(known, reverse=True)
            assert server.num_held(other) == sum(known)


def test_the_least_busy_is_chosen() -> None:
    assert choose([place(3), place(1), place(2)], [], LATER) == 1


def test_work_is_counted_by_slots() -> None:
    assert choose([place(3, slots=4), place(6, slots=16)], [], LATER) == 1
    assert spread([place(slots=4), place(slots=12)], 16) == [4, 12]


def test_those_alike_take_turns() -> None:
    places = [place(), place(), place()]
    turns = []
    for turn in range(6):
        turns.append(choose(places, [], LATER))
        places[turns[-1]].take([], LATER + turn)
        places[turns[-1]].give_back()
    assert turns == [0, 1, 2, 0, 1, 2]


def test_the_longest_prefix_wins() -> None:
    prompt = [1, 2, 3, 4]
    assert choose([place(), holding(prompt[:2]), holding(prompt[:3], 2)], prompt, LATER) == 2


@pytest.mark.parametrize(("outstanding", "chosen"), [(0, 0), (4, 0), (5, 1)])
def test_a_holder_that_has_half_its_slots_more_to_do_is_left_alone(
    outstanding: int, chosen: int
) -> None:
    assert choose([holding([1, 2], outstanding), place()], [1, 2], LATER) == chosen


def test_a_prefix_that_many_ask_for_spreads() -> None:
    places = [place(), place()]
    for turn in range(16):
        places[choose(places, [1, 2], LATER)].take([1, 2], LATER + turn)
    assert [each.outstanding for each in places] == [8, 8]
    assert [each.num_held([1, 2]) for each in places] == [2, 2]


def test_a_share_grows_from_little_to_all() -> None:
    server = place(opened=100.0)
    shares = [server.share(100.0 + part * SLOW_START_S) for part in (0, 0.05, 0.5, 1, 9)]
    assert shares == [FIRST_SHARE, FIRST_SHARE, 0.5, 1.0, 1.0]


def test_a_server_that_returns_starts_slowly() -> None:
    parts = []
    for age in (0.0, 0.25, 0.5, 1.0):
        _, returned = spread([place(), place(opened=LATER - age * SLOW_START_S)], 12)
        parts.append(returned)
    assert parts == [1, 2, 4, 6]


def test_servers_that_come_together_share_from_the_start() -> None:
    assert spread([place(opened=LATER), place(opened=LATER)], 8) == [4, 4]
    prompt = [1, 2]
    both = [holding(prompt, 2), place()]
    assert choose(both, prompt, 0.0) == 0


def test_a_server_that_returns_has_forgotten_its_prefixes() -> None:
    server = holding([1, 2], outstanding=3)
    server.open(8, 8_192, LATER)
    assert server.num_held([1, 2]) == 0
    assert server.outstanding == 3


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 16), st.integers(0, 5)), min_size=1))
def test_no_choice_is_far_busier_than_the_least_busy(
    servers: list[tuple[int, int, int]],
) -> None:
    prompt = [1, 2, 3, 4, 5]
    places = [holding(prompt[:known], busy, slots) for busy, slots, known in servers]
    chosen = places[choose(places, prompt, LATER)]
    loads = [(each.outstanding + 1) / each.slots for each in places]
    load = (chosen.outstanding + 1) / chosen.slots
    assert load <= min(loads) + 0.5
    near = [each for each, load in zip(places, loads, strict=True) if load <= min(loads) + 0.5]
    assert chosen.num_held(prompt) == max(e.num_held(prompt) for e in near)


def test_paces_that_differ_by_chance_make_no_server_slow() -> None:
    fast, faster = ServerLoad(), ServerLoad()
    for load, pace_s in ((fast, 0.004), (faster, 0.0001)):
        load.open(slots=1, kv_cache_tokens=0, now=0)
        load.note_pace(pace_s, LATER)
    faster.take([], LATER - 1)  # so it is the other's turn
    faster.give_back()
    assert choose([fast, faster], [], LATER) == 0


def test_a_slow_server_gets_nothing_while_another_has_a_free_slot() -> None:
    slow, fast = place(slots=2), place(slots=2)
    slow.note_pace(0.1, LATER)
    fast.note_pace(0.02, LATER)
    chosen = []
    for _ in range(5):  # five times as slow: the sixth waits as long here as there
        chosen.append(choose([slow, fast], [], LATER))
        [slow, fast][chosen[-1]].take([], LATER)
    assert chosen == [1, 1, 1, 1, 0]


def test_a_server_behind_a_slow_network_gets_nothing_while_another_has_a_free_slot() -> None:
    far, near = place(), place()
    far.delay_s, near.delay_s = 0.3, 0.002
    assert spread([far, near], 8) == [0, 8]
    assert spread([far, near], 2)[0] > 0  # better than to wait
    far.delay_s = 0.1
    assert spread([far, place()], 8) == [4, 4]


def test_of_those_as_good_a_free_one_is_chosen() -> None:
    slow, busier, idle = place(), place(4), place()
    slow.note_pace(0.1, LATER)
    for load in (busier, idle):
        load.note_pace(0.02, LATER)
    assert choose([slow, busier, idle], [], LATER, [slow, busier]) == 1
    assert choose([slow, busier, idle], [], LATER, [slow]) == 2
    idle.outstanding = busier.outstanding = 8
    assert choose([slow, busier, idle], [], LATER, [slow]) == 0


def test_a_slow_server_s_prefix_is_not_worth_its_pace() -> None:
    slow, fast = holding([1, 2, 3]), place()
    slow.note_pace(0.1, LATER)
    fast.note_pace(0.02, LATER)
    assert choose([slow, fast], [1, 2, 3], LATER) == 1
