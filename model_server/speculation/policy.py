"""What pays: how many heads to run, and how many draft rows a step gets. Pure.

Plain decoding is the tree of one node; a draft row is added when it makes expected tokens a second
more, by the cost curves and the measured probabilities. So a step is never meant to be slower than
a plain one, at any load.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_server.engine.cost import CostCurve, HeadCosts
from model_server.speculation.confidence import HeadConfidence, Proposal, Ranking
from model_server.speculation.tree import PLAIN, Candidates, DraftNode, best_first

MAX_NODES = 127  # draft rows of one step, over all its requests

# By how much another choice must be better than the one of the step before, and than plain
# decoding: prices are noisy, and the cheapest looking drafts are those with the luckiest price.
_STAY, _LEAVE_PLAIN = 1.02, 1.05
_REVIEW_STEPS, _REVIEW_STEPS_PLAIN = 4, 16  # with heads, without
_NUM_REMEMBERED, _WARM_UP = 16, 8  # proposals; so many are seen before heads may be given up
_EXPLORATION_SHARE = 0.005  # of the time, for heads that are not used and what they leave cold
_MAX_EXPLORATIONS_SAVED = 4  # when heads are given up, not all is spent at once
_LEARNING_RATE, _FORGETTING_RATE, _LARGEST_SURPRISE = 0.1, 1 / 500, 4.0
_CHECK_EVERY, _PRICES_HOLD = 8, 8  # nodes, steps
# What drafts are compared with is measured: after so many steps with drafts or heads, or as many
# more as keep the loss to this share, there are some plain ones. The first of them finds caches
# cold, the last one runs heads for what follows.
_PLAIN_EVERY, _PLAIN_SHARE, _PLAIN_STEPS = 32, 0.01, 3
_NEWS = 1.1  # such a change of their price asks for them at once

Floats = NDArray[np.float64]


class Load(NamedTuple):
    """The step at hand: requests that decode, the KV length they see, draft rows there is room for.

    There is at least one request; without any there is nothing to decide.
    `fixed_rows`: rows of every tree, less where there is no room; 0: what pays.
    """

    num_requests: int
    kv_length: float
    max_drafts: int
    fixed_rows: int = 0


class Policy:
    """Holds the running estimates; the drafter asks it every step."""

    def __init__(
        self, decode: CostCurve, head_costs: HeadCosts, confidence: HeadConfidence
    ) -> None:
        self.decode = decode
        self.head_costs = head_costs
        self.confidence = confidence
        self._seen: deque[Proposal] = deque(maxlen=_NUM_REMEMBERED)
        # By requests in a step:
        self._rates: dict[int, Floats] = {}  # tokens a second, by heads
        self._heads: dict[int, int] = {}
        self._num_steps: Counter[int] = Counter()
        self._num_reviews: Counter[int] = Counter()
        self._num_requests = 1
        # What drafts must gain to be worth it, by requests in a step, and whether they have heads:
        self._needed: dict[tuple[int, bool], _Needed] = {}
        self._steps_priced = self._last_drafts = 0
        self._plain_left = 0  # steps of their turn
        self._plain_s = 1.0  # of one, as predicted before the last turn
        self._num_plain = self._num_unsettled = 0  # steps in a row
        self._exploration_credit_s = 0.0
        self._cold_s = 0.0  # by how much a plain step is longer behind drafts or heads
        self._overhead_s = {False: 0.0, True: 0.0}  # of each request, by whether steps are settled

    def num_heads(self, load: Load) -> int:
        """Heads that are worth running in a step like this; 0: none."""
        most, requests = self.confidence.num_heads, load.num_requests
        if load.fixed_rows:
            return most if load.fixed_rows > 1 else 0
        if self._plain_left > 1:
            return 0
        if len(self._seen) < _WARM_UP:
            return most
        step = self._num_steps[requests]
        self._num_steps[requests] += 1
        if step % (_REVIEW_STEPS if self._heads.get(requests, most) else _REVIEW_STEPS_PLAIN) == 0:
            self._review(load)
        heads = self._heads[requests]
        sees_all = 0 < heads < most and step % _NUM_REMEMBERED == 0
        return most if sees_all and self._can_see_all(heads, requests) else heads

    def may_explore(self) -> bool:
        """Whether there is time to run heads only to see how good they are."""
        most = self.confidence.num_heads
        has_time = self._exploration_credit_s >= self._heads_s(most, 1) + self._cold_s
        return most > 0 and has_time and self._plain_left <= 1

    def note_proposal(self, proposal: Proposal) -> None:
        """Remember what heads are sure of these days."""
        if len(proposal.ids) == self.confidence.num_heads:
            self._seen.append(proposal)

    def note_step(
        self, step_s: float, overhead_s: float | None, *, plain: bool, exploration_s: float
    ) -> None:
        """Take a step's time; `overhead_s` is what was neither decode nor heads, None where prompts
        were computed, too; `plain`: there were no drafts, heads or prompts.
        """
        spent_s = exploration_s + self._cold_s if exploration_s else 0.0
        most_s = self._heads_s(self.confidence.num_heads, self._num_requests) + self._cold_s
        credit_s = self._exploration_credit_s + _EXPLORATION_SHARE * step_s - spent_s
        self._exploration_credit_s = min(credit_s, _MAX_EXPLORATIONS_SAVED * most_s)
        self._num_plain = self._num_plain + 1 if plain else 0
        settled = self._num_plain > 1
        self._num_unsettled = 0 if settled else self._num_unsettled + 1
        if overhead_s is None:
            return
        each_s = overhead_s / self._num_requests
        before = self._overhead_s[settled] or each_s
        each_s = min(each_s, _LARGEST_SURPRISE * before)
        self._overhead_s[settled] = before + _LEARNING_RATE * (each_s - before)
        self._overhead_s[not settled] *= 1 - _FORGETTING_RATE

    def choose(self, requests: Sequence[Candidates], load: Load, heads: int) -> list[DraftNode]:
        """The draft nodes of a step, in an order that has parents first."""
        self._num_requests = load.num_requests
        if load.fixed_rows:
            each = min(load.fixed_rows - 1, load.max_drafts // load.num_requests)
            return list(best_first(requests, each))
        if self._plain_left:
            self._plain_left -= 1
            return list(islice(_forced(requests, ()), load.max_drafts))
        if self._is_hopeless(requests, load, heads):
            self._last_drafts = 0
            return []
        step_s = self._step_s(load) + self._heads_s(heads, load.num_requests)
        if heads:
            step_s[0] += self._cold_s
        elif self._num_plain:  # drafts make the next plain step longer
            step_s[1:] += self._cold_s
        nodes = _that_may_pay(requests, load.num_requests, step_s)
        gains = np.cumsum([0.0, *(node.probability for node in nodes)])
        rates = (load.num_requests + gains) / step_s[: len(gains)]
        self._last_drafts = _settle(rates, min(self._last_drafts, len(nodes)))
        if not self._last_drafts:
            self._needed[load.num_requests, heads > 0] = _Needed.of(load.num_requests, step_s)
        if not any(request.forced for request in requests):
            self._give_plain_a_turn(load, rates[self._last_drafts])
        chosen = nodes[: self._last_drafts]
        return [*chosen, *islice(_forced(requests, chosen), load.max_drafts - len(chosen))]

    def _is_hopeless(self, requests: Sequence[Candidates], load: Load, heads: int) -> bool:
        """Whether no number of the likeliest candidates would pay, as prices were a few steps ago.
        Quick: beside many requests most steps are like that.
        """
        if not self._steps_priced:
            self._needed.clear()
        self._steps_priced = (self._steps_priced + 1) % _PRICES_HOLD
        if self._last_drafts or any(request.forced for request in requests):
            return False
        if needed := self._needed.get((load.num_requests, heads > 0)):
            return not needed.is_reached(requests)
        return all(request is PLAIN for request in requests)

    def _give_plain_a_turn(self, load: Load, rate: float) -> None:
        """Where it is time; `rate`: tokens a second of the step at hand."""
        if self._num_unsettled < _PLAIN_EVERY:
            return
        plain_s = self._step_s(load)[0]
        loss = 1.0 - load.num_requests / (rate * plain_s)
        is_news = not 1 / _NEWS < plain_s / self._plain_s < _NEWS
        if is_news or self._num_unsettled >= _PLAIN_STEPS * loss / _PLAIN_SHARE:
            self._plain_s, self._plain_left, self._num_unsettled = plain_s, _PLAIN_STEPS, 0

    def _can_see_all(self, heads: int, requests: int) -> bool:
        """Whether the deeper heads may be run too, to see them; at the cost of exploring."""
        most = self.confidence.num_heads
        extra_s = self._heads_s(most, requests) - self._heads_s(heads, requests)
        has_time = self._exploration_credit_s >= extra_s
        self._exploration_credit_s -= extra_s * has_time
        return has_time

    def _review(self, load: Load) -> None:
        """Choose the heads with the best rate in steps like those seen, the same unless beaten."""
        requests, most = load.num_requests, self.confidence.num_heads
        first = self._num_reviews[requests] * requests
        self._num_reviews[requests] += 1
        seen = [self._seen[(first + i) % len(self._seen)] for i in range(requests)]
        step = [
            Candidates(Ranking(self.confidence, proposal), (), most, MAX_NODES) for proposal in seen
        ]
        heads_s = np.array([self._heads_s(heads, requests) for heads in range(most + 1)])
        step_s = self._step_s(load)
        plain_s, step_s[0] = step_s[0], step_s[0] + self._cold_s
        rates = _replay(step, step_s, heads_s)
        rates[0] = requests / plain_s
        before = self._rates.get(requests, rates)
        self._rates[requests] = before + _LEARNING_RATE * (rates - before)
        self._heads[requests] = _settle(self._rates[requests], self._heads.get(requests, most))

    def _heads_s(self, heads: int, num_requests: int) -> float:
        return self.head_costs.seconds(heads, num_requests) if heads else 0.0

    def _step_s(self, load: Load) -> Floats:
        """Seconds of a step beside its heads, by the number of draft rows; a plain one among such.
        By how much that is longer behind others is remembered.
        """
        requests, most = load.num_requests, max(min(load.max_drafts, MAX_NODES), 0)
        step_s = self.decode.steps(requests, requests + most, load.kv_length)
        # Others are never cheaper than settled ones, though they were not timed yet or long ago.
        python_s = requests * max(self._overhead_s[False] - self._overhead_s[True], 0.0)
        self._cold_s = max(self.decode.unsettled - 1, 0.0) * float(step_s[0]) + python_s
        step_s += requests * self._overhead_s[True]
        step_s[1:] += python_s
        return step_s


class _Needed(NamedTuple):
    """What drafts must gain for plain decoding to be left for them, in expected tokens: by their
    number, from one; and the least of it for each.
    """

    gains: list[float]
    each: float

    @classmethod
    def of(cls, num_requests: int, step_s: Floats) -> _Needed:
        """`step_s`: seconds of a step by its drafts, from none."""
        gains = num_requests * (_LEAVE_PLAIN * step_s[1:] / step_s[0] - 1)
        return cls(gains.tolist(), float((gains / np.arange(1, len(step_s))).min(initial=1.0)))

    def is_reached(self, requests: Sequence[Candidates]) -> bool:
        """Whether some number of their nodes gains enough."""
        gain = 0.0
        for number, (node, needed) in enumerate(
            zip(best_first(requests), self.gains, strict=False)
        ):
            # No later node is likelier; so many of those would not make up for what is needed.
            if gain + node.probability <= self.each * (number + 1) and node.probability < self.each:
                return False
            gain += node.probability
            if gain > needed:
                return True
        return False


def _forced(requests: Sequence[Candidates], chosen: Sequence[DraftNode]) -> Iterator[DraftNode]:
    """The best node of every request that must have one and got none."""
    served = {node.request for node in chosen}
    for number, request in enumerate(requests):
        if request.forced and number not in served:
            for node in best_first([request], 1):
                yield node._replace(request=number)


def _that_may_pay(
    requests: Sequence[Candidates], num_requests: int, step_s: Floats
) -> list[DraftNode]:
    """The likeliest nodes, until no number of further ones can make a better rate."""
    nodes: list[DraftNode] = []
    tokens, best = float(num_requests), num_requests / step_s[0]
    for node in islice(best_first(requests), len(step_s) - 1):
        if len(nodes) % _CHECK_EVERY == 0:
            left_s = step_s[len(nodes) + 1 :]
            if (tokens + node.probability * np.arange(1, len(left_s) + 1) <= best * left_s).all():
                break
        nodes.append(node)
        tokens += node.probability
        best = max(best, tokens / step_s[len(nodes)])
    return nodes


def _replay(requests: Sequence[Candidates], step_s: Floats, heads_s: Floats) -> Floats:
    """Tokens a second that a step would have made, by the number of heads."""
    nodes = _that_may_pay(requests, len(requests), step_s + heads_s[-1])
    gains = np.array([0.0, *(node.probability for node in nodes)])
    depths = np.array([0, *(node.depth for node in nodes)])
    # Without the deeper nodes it is the search for fewer heads.
    kept = depths <= np.arange(len(heads_s))[:, None]
    tokens = len(requests) + (gains * kept).cumsum(axis=1)
    num_drafts = kept.cumsum(axis=1) - 1
    return np.asarray((tokens / (step_s[num_drafts] + heads_s[:, None])).max(axis=1))


def _settle(rates: Floats, last: int) -> int:
    """The best rate's index; the last one while it is nearly as good, and no worse than index 0.

    Index 0 is plain decoding: what is left for it is never held on to. Steady numbers of rows let
    llama.cpp keep its graph.
    """
    best = int(rates.argmax())
    needed = _STAY if last else _LEAVE_PLAIN
    stays = rates[best] < needed * rates[last] and rates[last] >= rates[0]
    return last if stays else best
