"""A queueing simulation of many model servers: the real scheduler and the real balancer decide,
only time is made up, from a measured cost curve. Plain decoding; drafts make it no slower.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from api.upstream import balancer
from api.upstream.balancer import ServerLoad
from model_server.contract.protocol import GenerateRequest
from model_server.engine.cost import Costs
from model_server.engine.kv import KvCache
from model_server.engine.plan import Plan
from model_server.engine.scheduler import Limits, Scheduler
from model_server.engine.sequence import Sequence, Verified
from model_server.llama.context import MAX_SEQS
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.drafter import Drafter, DraftOptions
from model_server.speculation.policy import Policy

_LONG_AGO_S = -1e9


@dataclass(frozen=True)
class Machine:
    """One model server. `overhead_s`: of a step, beside its decodes."""

    costs: Costs
    limits: Limits
    num_cells: int
    overhead_s: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals, `rate` a second. The first `shared_tokens` of a prompt are one of `groups`;
    the rest is its own.
    """

    rate: float
    num_requests: int
    prompt_tokens: int
    answer_tokens: int
    groups: int = 1
    shared_tokens: int = 0
    seed: int = 0

    def arrivals(self) -> Iterator[tuple[float, list[int]]]:
        """Moments in seconds, and prompts."""
        rng = random.Random(self.seed)
        now, fresh = 0.0, itertools.count(1_000_000)
        for _ in range(self.num_requests):
            now += rng.expovariate(self.rate)
            group = rng.randrange(self.groups)
            own = [next(fresh) for _ in range(self.prompt_tokens - self.shared_tokens)]
            yield now, [1_000 + group] * self.shared_tokens + own


@dataclass
class Request:
    """One of them, and what became of it; times in seconds."""

    arrived: float
    prompt: list[int]
    server: int = 0
    first_token: float = 0.0
    ended: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.first_token - self.arrived


@dataclass(frozen=True)
class Outcome:
    """All requests of a simulation, in the order they came."""

    requests: list[Request]
    answer_tokens: int
    num_servers: int
    busy_s: float

    @property
    def span_s(self) -> float:
        return max(each.ended for each in self.requests) - self.requests[0].arrived

    def ttft_s(self, quantile: float) -> float:
        return float(np.quantile([each.ttft_s for each in self.requests], quantile))

    @property
    def tokens_per_s(self) -> float:
        return len(self.requests) * self.answer_tokens / self.span_s

    @property
    def utilisation(self) -> float:
        """The part of the time in which a server computes."""
        return self.busy_s / (self.num_servers * self.span_s)


@dataclass
class _Server:
    machine: Machine
    load: ServerLoad = field(default_factory=ServerLoad)
    plan: Plan | None = None
    requests: dict[str, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        costs, limits = self.machine.costs, self.machine.limits
        policy = Policy(costs.decode, costs.heads, HeadConfidence(0))
        kv = KvCache(self.machine.num_cells, MAX_SEQS)
        self.scheduler = Scheduler(kv, costs, limits, Drafter(policy, DraftOptions(mode="off")))
        self.load.open(limits.num_slots, self.machine.num_cells, _LONG_AGO_S)

    def begin(self) -> float:
        """Schedule a step; its seconds."""
        plan = self.plan = self.scheduler.schedule()
        costs = self.machine.costs
        prefill_s = costs.prefill.seconds(
            plan.num_prefill_rows, plan.prefill_kv_length, len(plan.prefill)
        )
        decode_s = costs.decode.seconds(
            plan.num_decode_rows, plan.decode_kv_length, len(plan.decode)
        )
        return prefill_s + decode_s + self.machine.overhead_s

    def end(self, now: float) -> None:
        """The step is over: a token for everyone who decoded."""
        assert self.plan is not None, "it was begun. This is a bug."
        results = []
        for decoded in self.plan.decode:
            sequence = decoded.sequence
            request = self.requests[sequence.id]
            request.first_token = request.first_token or now
            sequence.tokens.append(0)
            results.append(Verified(sequence, [0], "", [0], [False]))
        self.scheduler.update(self.plan, results)
        for result in results:
            sequence = result.sequence
            if sequence.num_answered == sequence.max_tokens:
                self.scheduler.remove(sequence)
                self.requests.pop(sequence.id).ended = now
                self.load.give_back()
        self.plan = None


def simulate(
    machine: Machine, num_servers: int, traffic: Traffic, *, by_prefix: bool = True
) -> Outcome:
    """Until every request has its answer. `by_prefix`: who holds a prefix is preferred."""
    servers = [_Server(machine) for _ in range(num_servers)]
    requests: list[Request] = []
    busy_s = 0.0
    # (moment, tie, server whose step ends); None: an arrival.
    events: list[tuple[float, int, int | None]] = []
    order = itertools.count()
    arrivals = traffic.arrivals()

    def next_arrival() -> None:
        for arrived, prompt in itertools.islice(arrivals, 1):
            requests.append(Request(arrived, prompt))
            heapq.heappush(events, (arrived, next(order), None))

    next_arrival()
    while events:
        now, _, ended = heapq.heappop(events)
        if ended is None:
            number = _arrive(servers, requests[-1], len(requests), traffic, by_prefix=by_prefix)
            next_arrival()
        else:
            number = ended
            servers[number].end(now)
        server = servers[number]
        if server.plan is None and server.scheduler.has_work:
            step_s = server.begin()
            busy_s += step_s
            heapq.heappush(events, (now + step_s, next(order), number))
    return Outcome(requests, traffic.answer_tokens, num_servers, busy_s)


def _arrive(
    servers: list[_Server], request: Request, number: int, traffic: Traffic, *, by_prefix: bool
) -> int:
    """Choose a server for a request, and hand it over."""
    asked = GenerateRequest(
        id=str(number), prompt_tokens=request.prompt, max_tokens=traffic.answer_tokens
    )
    chunks = balancer.chunks(asked) if by_prefix else []
    request.server = balancer.choose([each.load for each in servers], chunks, request.arrived)
    server = servers[request.server]
    server.load.take(chunks, request.arrived)
    server.requests[asked.id] = request
    nothing = cast("Any", None)  # what draws and shows tokens; here they are made up
    server.scheduler.add(
        Sequence(
            asked,
            request.prompt,
            traffic.answer_tokens,
            nothing,
            nothing,
            [],
            frozenset(),
            order=number,
        )
    )
    return request.server
