from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from api.upstream.breaker import FIRST_HOLD_S, IN_A_ROW, LONGEST_HOLD_S, MANY, Breaker


def allows(breaker: Breaker, now: float) -> bool:
    return now >= breaker.allows_from


def opened() -> Breaker:
    breaker = Breaker()
    assert [breaker.fail("sick", 0.0) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
    return breaker


def test_some_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert not allows(breaker, 0.0)
    assert not allows(breaker, FIRST_HOLD_S - 0.01)
    assert breaker.reason == "sick"


def test_one_failure_among_many_successes_does_not() -> None:
    breaker = Breaker()
    for _ in range(100):
        for _ in range(IN_A_ROW - 1):
            assert not breaker.fail("once", 0.0)
        for _ in range(3 * IN_A_ROW):
            assert not breaker.succeed()
    assert breaker.is_closed


def test_every_other_failure_opens_it_in_the_end() -> None:
    breaker = Breaker()
    opens = []
    for _ in range(MANY):
        breaker.succeed()
        opens.append(breaker.fail("half", 0.0))
    assert opens == [False] * (MANY - 1) + [True]


def test_after_the_hold_one_request_is_the_trial() -> None:
    breaker = opened()
    assert allows(breaker, FIRST_HOLD_S)
    breaker.begin_trial()
    assert not allows(breaker, FIRST_HOLD_S)
    assert breaker.succeed()
    assert breaker.is_closed
    assert allows(breaker, FIRST_HOLD_S)


def test_a_trial_that_says_nothing_makes_room_for_the_next() -> None:
    breaker = opened()
    breaker.begin_trial()
    breaker.leave()
    assert allows(breaker, FIRST_HOLD_S)


def test_the_hold_doubles_up_to_a_bound() -> None:
    breaker, now, holds = opened(), 0.0, []
    for _ in range(8):
        hold_s = next(s for s in (2.0**i for i in range(10)) if allows(breaker, now + s))
        holds.append(hold_s)
        now += hold_s
        breaker.begin_trial()
        assert breaker.fail("still", now)
    assert holds == [1, 2, 4, 8, 8, 8, 8, 8]
    assert allows(breaker, now + LONGEST_HOLD_S)


def test_what_was_sent_before_it_opened_does_not_prolong_it() -> None:
    breaker = opened()
    assert not breaker.fail("late", FIRST_HOLD_S / 2)
    assert allows(breaker, FIRST_HOLD_S)


def test_what_was_the_requests_fault_is_forgiven() -> None:
    breaker = Breaker()
    breaker.succeed()
    assert [breaker.fail("sick", 0.0) for _ in range(IN_A_ROW)][-1]
    breaker.forgive()
    assert breaker.is_closed
    assert breaker.fail("once more", 0.0)


def test_one_that_answers_nobody_is_not_forgiven() -> None:
    breaker = opened()
    breaker.forgive()
    assert not breaker.is_closed


class Model(RuleBasedStateMachine):
    """However ends come: never two trials, and a success always opens the way again."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.on_trial = 0

    @rule(seconds=st.floats(0.01, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: allows(self.breaker, self.now))
    @rule()
    def a_request_goes_there(self) -> None:
        if not self.breaker.is_closed:
            self.on_trial += 1
            self.breaker.begin_trial()

    @rule()
    def it_fails(self) -> None:
        was_open = not self.breaker.is_closed
        if self.breaker.fail("sick", self.now):
            self.on_trial = 0
            assert not allows(self.breaker, self.now)
        elif was_open:
            assert not self.breaker.is_closed

    @rule()
    def it_is_answered(self) -> None:
        self.breaker.succeed()
        self.on_trial = 0
        assert allows(self.breaker, self.now)

    @rule()
    def the_request_was_at_fault(self) -> None:
        self.breaker.forgive()
        if self.breaker.is_closed:
            self.on_trial = 0

    @rule()
    def it_says_nothing(self) -> None:
        self.breaker.leave()
        self.on_trial = 0

    @invariant()
    def there_is_one_trial_at_most(self) -> None:
        assert self.on_trial <= 1

    @invariant()
    def nobody_is_locked_out_for_ever(self) -> None:
        assert self.on_trial or allows(self.breaker, self.now + LONGEST_HOLD_S)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, deadline=None)
