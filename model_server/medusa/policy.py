"""What pays: how many heads to run, and how many draft rows a step gets. Pure.

Plain decoding is the tree of one node; a draft row is added when it makes expected tokens a second
more, by the cost curves and the measured probabilities. So a step is never meant to be slower than
a plain one, at any load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model_server.medusa.confidence import HeadConfidence
from model_server.medusa.cost import CostCurve, HeadCosts
from model_server.medusa.tree import Candidates, Choice, best_first, expected_tokens

MAX_NODES = 63  # of one request's tree, without the root
_LEAST_PROBABILITY = 0.005
_STAY = 1.02  # by how much another choice must be better than the one of the step before
_REVIEW_STEPS = 16
_WARM_UP = 8  # proposals seen before heads may be given up
_PROBE_SHARE = 0.01  # of the time, spent on heads that are not used


@dataclass(frozen=True)
class Load:
    """The step at hand: requests that decode, the KV length they see, draft rows there is room for.

    `fixed_rows`: rows of every tree, for tests and benchmarks; 0: what pays.
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
        self._seen: deque[NDArray[np.float32]] = deque(maxlen=_REVIEW_STEPS)
        self._num_seen = 0
        self._chosen: dict[int, int] = {}  # requests in a step -> heads
        self._age: dict[int, int] = {}
        self._last_drafts = 0
        self._total_s = self._probing_s = 0.0
        self._overhead_s = {False: 0.0, True: 0.0}

    def num_heads(self, load: Load) -> int:
        """Heads that are worth running in a step like this; 0: none."""
        most = self.confidence.num_heads
        if self._num_seen < _WARM_UP or load.fixed_rows > 1:
            return most
        requests = load.num_requests
        age = self._age.get(requests, 0)
        if age % _REVIEW_STEPS == 0:
            self._chosen[requests] = self._review(load, self._chosen.get(requests, most))
        self._age[requests] = age + 1
        return self._chosen[requests]

    def may_probe(self) -> bool:
        """Whether there is time to run heads only to see how good they are."""
        probe_s = self.head_costs.seconds(self.confidence.num_heads, 1)
        return self._probing_s + probe_s <= _PROBE_SHARE * self._total_s

    def note_proposal(self, log_probs: NDArray[np.float32]) -> None:
        """Remember what heads are sure of these days: (heads, k) log probabilities."""
        if len(log_probs) == self.confidence.num_heads:
            self._seen.append(log_probs)
            self._num_seen += 1

    def note_step(self, step_s: float, overhead_s: float, *, drafted: bool, probe_s: float) -> None:
        """Take a step's time; `overhead_s` is what was neither decode nor heads."""
        self._total_s += step_s
        self._probing_s += probe_s
        before = self._overhead_s[drafted] or overhead_s
        self._overhead_s[drafted] = before + 0.1 * (min(overhead_s, 4 * before) - before)

    def choose(self, requests: Sequence[Candidates], load: Load, heads: int) -> list[Choice]:
        """The draft nodes of a step, in an order that has parents first."""
        if load.fixed_rows:
            each = [list(islice(best_first([one]), load.fixed_rows - 1)) for one in requests]
            return [
                Choice(number, c.parent, c.token, c.probability, c.depth)
                for number, choices in enumerate(each)
                for c in choices
            ]
        most = min(load.max_drafts, MAX_NODES * load.num_requests)
        choices: list[Choice] = []
        for choice in best_first(requests):
            if len(choices) >= most or choice.probability < _LEAST_PROBABILITY:
                break
            choices.append(choice)
        count = self._num_drafts([c.probability for c in choices], load, heads)
        return choices[:count]

    def _num_drafts(self, probabilities: Sequence[float], load: Load, heads: int) -> int:
        """How many of the likeliest nodes make the most tokens a second."""
        gained = float(load.num_requests)
        rates = [gained / self._step_s(load, 0, heads)]
        for count, probability in enumerate(probabilities, 1):
            gained += probability
            rates.append(gained / self._step_s(load, count, heads))
        best = int(np.argmax(rates))
        last = min(self._last_drafts, len(probabilities))
        if rates[best] < _STAY * rates[last]:
            best = last  # steady row counts let llama.cpp keep its graph
        self._last_drafts = best
        return best

    def _review(self, load: Load, current: int) -> int:
        """Heads with the best expected rate; the current number unless clearly beaten."""
        typical = self.confidence.probabilities(np.stack(self._seen)).mean(axis=0).tolist()
        rates = [self._rate(load, typical[:heads]) for heads in range(len(typical) + 1)]
        best = int(np.argmax(rates))
        return best if rates[best] > _STAY * rates[current] else current

    def _rate(self, load: Load, by_depth: Sequence[Sequence[float]]) -> float:
        """Expected tokens a second with trees of the best size, the same for every request."""
        requests = load.num_requests
        most = min(load.max_drafts // requests, MAX_NODES) if by_depth else 0
        expected = expected_tokens(by_depth, most + 1)
        heads = len(by_depth)
        return max(
            requests * tokens / self._step_s(load, requests * count, heads)
            for count, tokens in enumerate(expected)
        )

    def _step_s(self, load: Load, num_drafts: int, heads: int) -> float:
        rows = load.num_requests + num_drafts
        seconds = self.decode.seconds(rows, load.kv_length) + self._overhead_s[num_drafts > 0]
        return seconds + (self.head_costs.seconds(heads, load.num_requests) if heads else 0.0)
