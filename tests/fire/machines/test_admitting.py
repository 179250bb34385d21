"""The gateway's window, permits and rates, each against a few lines that do the same."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.admission import rates
from api.admission.permits import Permits
from api.admission.rates import BYTES_PER_TOKEN, Admission, Rates
from api.batcher import Window
from api.config import Settings
from api.errors import GatewayError
from api.metrics import GatewayMetrics
from api.request import Choice, ClientRequest
from model_server.contract.protocol import GenerateRequest

WAIT_S, SIZE = 0.1, 4


class Gathering(RuleBasedStateMachine):
    """Every choice leaves once, in its turn, and none waits longer than the window."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(SIZE, WAIT_S)
        self.waiting: list[Choice] = []
        self.now = 0.0
        self.num_asked = 0

    @rule(num_choices=st.integers(1, 6))
    def a_request_comes(self, num_choices: int) -> None:
        self.num_asked += 1
        asked = [
            GenerateRequest(id=f"{self.num_asked}-{i}", prompt="a") for i in range(num_choices)
        ]
        of = ClientRequest(str(self.num_asked), asked, Admission(""), GatewayMetrics())
        for index, one in enumerate(asked):
            choice = Choice(index, one, of)
            choice.arrived = self.now
            self.window.queue.append(choice)
            self.waiting.append(choice)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def one_leaves(self, which: int) -> None:
        choice = self.waiting.pop(which % len(self.waiting))
        self.window.queue.remove(choice)

    @rule(seconds=st.floats(0, 0.2), is_slot_free=st.booleans())
    def time_passes(self, seconds: float, is_slot_free: bool) -> None:
        """Batches leave as soon as the window says so."""
        self.now += seconds
        while (at := self.window.closes_at(is_slot_free=is_slot_free)) is not None:
            if at > self.now:
                break
            batch = self.window.pop()
            assert 1 <= len(batch) <= SIZE
            assert [id(c) for c in batch] == [id(c) for c in self.waiting[: len(batch)]]
            del self.waiting[: len(batch)]

    @invariant()
    def the_window_is_the_list(self) -> None:
        assert list(self.window.queue) == list(self.waiting)

    @invariant()
    def nobody_waits_longer(self) -> None:
        for is_slot_free in (False, True):
            at = self.window.closes_at(is_slot_free=is_slot_free)
            assert (at is None) == (not self.waiting)
            assert at is None or at <= self.waiting[0].arrived + WAIT_S


class Permitting(RuleBasedStateMachine):
    """As many are held as were taken and not given back."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = Permits(8)
        self.held: list[tuple[int, ExitStack]] = []

    @rule(wanted=st.integers(1, 12))
    def one_asks(self, wanted: int) -> None:
        num_held = sum(count for count, _ in self.held)
        stack = ExitStack()
        try:
            stack.enter_context(self.permits.taken(wanted))
        except GatewayError as error:
            if error.code != "too_many_in_flight":
                raise
            assert num_held
            assert num_held + wanted > 8
        else:
            assert not num_held or num_held + wanted <= 8
            self.held.append((wanted, stack))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def one_gives_back(self, which: int) -> None:
        self.held.pop(which % len(self.held))[1].close()

    @invariant()
    def they_are_counted(self) -> None:
        assert self.permits.in_flight == sum(count for count, _ in self.held)


class Rating(RuleBasedStateMachine):
    """Within a window nobody gets more than the budgets, nor is refused what is left of them."""

    @initialize(requests=st.integers(1, 6), tokens=st.integers(10, 60))
    def opened(self, requests: int, tokens: int) -> None:
        self.limits = {"requests": requests, "tokens": tokens}
        self.patch = patch.object(rates, "MINUTE_S", 3_600)
        self.patch.start()
        self.loop = asyncio.new_event_loop()
        self.rates = self.loop.run_until_complete(self._made(requests, tokens))
        self.num_admitted = dict.fromkeys("ab", 0)
        self.num_tokens = dict.fromkeys("ab", 0)
        self.open: list[tuple[str, Admission]] = []

    async def _made(self, requests: int, tokens: int) -> Rates:
        limits = Settings(rate_limit_requests=requests, rate_limit_tokens=tokens)
        return Rates(limits, GatewayMetrics())

    @rule(caller=st.sampled_from("ab"), estimate=st.integers(1, 30))
    def one_asks(self, caller: str, estimate: int) -> None:
        admission = Admission(f"key {caller}")
        has_request = self.num_admitted[caller] < self.limits["requests"]
        has_tokens = self.num_tokens[caller] + estimate <= self.limits["tokens"]
        asked = self.rates.admit(admission, estimate * BYTES_PER_TOKEN)
        if has_request and has_tokens:
            self.loop.run_until_complete(asked)
            self.num_admitted[caller] += 1
            self.num_tokens[caller] += estimate
            self.open.append((caller, admission))
        else:
            lacking = "RATE_LIMIT_TOKENS" if has_request else "RATE_LIMIT_REQUESTS"
            with pytest.raises(GatewayError, match=lacking):
                self.loop.run_until_complete(asked)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99), used=st.integers(1, 40))
    def one_ends(self, which: int, used: int) -> None:
        caller, admission = self.open.pop(which % len(self.open))
        admission.used = used
        self.loop.run_until_complete(self.rates.settle(admission))
        self.num_tokens[caller] += used - admission.charged["tokens"]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run_until_complete(self.rates.aclose())
            self.loop.close()
            self.patch.stop()


BOUNDS = settings(max_examples=60, deadline=None, derandomize=True)
TestGathering = Gathering.TestCase
TestGathering.settings = BOUNDS
TestPermitting = Permitting.TestCase
TestPermitting.settings = BOUNDS
TestRating = Rating.TestCase
TestRating.settings = BOUNDS
