"""Batcher, pool and retries against servers that come, go, hang and fail, in time that jumps.

Whatever happens, each request ends once: with the known answer, or with an error that what happened
to it explains; none is at two servers at once, and in the end nothing is held for anybody.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from itertools import count as numbers

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from starlette.responses import JSONResponse

from api.batcher import QUIET_S
from api.config import Settings
from api.errors import ClientGone
from api.gateway import Gateway
from api.upstream.pool import Network
from api.upstream.retry import MOST_FAILED
from api.upstream.server import LONGEST_PROBE_INTERVAL_S
from tests.api.plays import Client, Play, Server
from tests.api.scripted_server import (
    num_tokens,
)
from tests.api.virtual_time import virtual_time
from tests.api.wire import Machine, Wire

ATTEMPTS = 3
MAX_WAIT_S = 0.1
SETTLED_S = 0.001
LONGEST_S = 120.0  # that anybody waits once all servers are well
FAILURES = {"engine": (500, 503), "overloaded": (503,), "invalid_prompt": (400,)}


class Batching(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.loop = self.stack.enter_context(virtual_time())
        self.names = numbers()
        self.clients: list[Client] = []
        self.servers = [Server(), Server()]
        self.machines = [Machine(each) for each in self.servers]
        self.none_ready_at: list[float] = []
        self.has_other_model = False

    @initialize(batch_size=st.integers(1, 3), most=st.integers(1, 2), adaptive=st.booleans())
    def opened(self, batch_size: int, most: int, adaptive: bool) -> None:
        self.gateway = self.loop.run_until_complete(self._open(batch_size, most, adaptive))
        self.pass_time(SETTLED_S)

    async def _open(self, batch_size: int, most: int, adaptive: bool) -> Gateway:
        made = Gateway(
            Settings(
                model_server_urls=("http://10.0.0.1", "http://10.0.0.2"),
                batch_size=batch_size,
                max_wait_time=MAX_WAIT_S,
                max_concurrent_batches=most,
                adaptive_batching=adaptive,
                retry_attempts=ATTEMPTS,
                request_timeout=3_600,
            ),
            Network(Wire(self.machines)),
        )
        made.start()
        return made

    @rule(num_choices=st.integers(1, 3), max_tokens=st.integers(1, 3))
    def a_client_asks(self, num_choices: int, max_tokens: int) -> None:
        async def ask() -> Client:
            return Client(self.gateway, str(next(self.names)), num_choices, max_tokens)

        self.clients.append(self.loop.run_until_complete(ask()))

    @precondition(lambda self: self.waiting)
    @rule(
        which=st.integers(0, 99),
        notices=st.booleans(),
        seconds=st.sampled_from([0.0, QUIET_S, MAX_WAIT_S]),
        num_turns=st.integers(0, 9),
    )
    def a_client_leaves(self, which: int, notices: bool, seconds: float, num_turns: int) -> None:
        """Also at the very moment at which its batch goes."""
        client = self.waiting[which % len(self.waiting)]

        async def leave() -> None:
            await asyncio.sleep(seconds)
            for _ in range(num_turns):
                await asyncio.sleep(0)
            if notices and client.request:
                client.request.fail(ClientGone())
            else:
                client.task.cancel()

        self.loop.run_until_complete(leave())
        self.pass_time(SETTLED_S)

    @precondition(lambda self: self.playing)
    @rule(which=st.integers(0, 99), num_events=st.integers(1, 6))
    def an_answer_goes_on(self, which: int, num_events: int) -> None:
        self.playing[which % len(self.playing)].go_on(num_events)
        self.pass_time(SETTLED_S)

    @precondition(lambda self: self.playing)
    @rule(
        which=st.integers(0, 99), code=st.sampled_from(sorted(FAILURES)), status=st.integers(0, 1)
    )
    def an_answer_fails(self, which: int, code: str, status: int) -> None:
        kinds = FAILURES[code]
        self.playing[which % len(self.playing)].fail(code, kinds[status % len(kinds)])
        self.pass_time(SETTLED_S)

    @rule(which=st.integers(0, 1))
    def a_server_is_killed(self, which: int) -> None:
        self.machines[which].kill()
        self.pass_time(SETTLED_S)

    @rule(which=st.integers(0, 1))
    def a_server_hangs(self, which: int) -> None:
        self.machines[which].awake.clear()
        self.pass_time(SETTLED_S)

    @rule(which=st.integers(0, 1), number=st.integers(1, 3))
    def a_server_is_full(self, which: int, number: int) -> None:
        full = {"retry-after": "1"}
        self.servers[which].refusals = [
            JSONResponse({"status": "ready"}, 503, full) for _ in range(number)
        ]

    @rule(which=st.integers(0, 1), how=st.sampled_from(["as it was", "restarted", "other model"]))
    def a_server_returns(self, which: int, how: str) -> None:
        server = self.servers[which]
        changed: dict[str, object] = {"created": server.info.created + (how != "as it was")}
        if how == "other model":
            self.has_other_model = True
            [changed["model_id"]] = {"scripted-1", "scripted-2"} - {server.info.model_id}
        server.info = server.info.model_copy(update=changed)
        server.refusals = []
        self.machines[which].start()
        self.pass_time(SETTLED_S)

    @rule(seconds=st.sampled_from([0.005, 0.1, 0.6, 3.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.loop.time() + seconds
        while (left := until - self.loop.time()) > 1e-9:
            self.loop.run_until_complete(asyncio.sleep(min(left, 0.25)))
            if not self.gateway.pool.ready:
                self.none_ready_at.append(self.loop.time())
        self.loop.run_until_complete(asyncio.sleep(1e-6))  # what this very instant began is over
        self.check()

    @property
    def waiting(self) -> list[Client]:
        return [each for each in self.clients if not each.task.done()]

    @property
    def plays(self) -> list[Play]:
        return [play for server in self.servers for play in server.plays]

    @property
    def playing(self) -> list[Play]:
        return [play for play in self.plays if not play.is_over]

    def check(self) -> None:
        names = [play.request.id for play in self.playing]
        assert len(names) == len(set(names)), "sent twice at the same time"
        sent = [c for each in self.clients for c in each.choices if c.stage != "gathered"]
        for server in self.gateway.pool.servers:
            assert len(server.unacknowledged) <= self.gateway.settings.max_concurrent_batches
            here = [c for c in sent if c.carrier and c.carrier.server_url == server.url]
            assert server.load.outstanding == sum(not c.ended.done() for c in here)
        for client in self.clients:
            for ids in client.read:
                assert ids == list(range(len(ids))), "a token is lost, or was told twice"

    def teardown(self) -> None:
        try:
            if hasattr(self, "gateway"):
                self._end_all()
                self._check_ends()
                self._check_nothing_is_held()
                self.loop.run_until_complete(self.gateway.aclose())
        finally:
            self.stack.close()

    def _end_all(self) -> None:
        """Have all servers well, and all answers go on to their ends."""
        for which in (0, 1):
            self.a_server_returns(which, "as it was")
        give_up = self.loop.time() + LONGEST_S
        while self.waiting and self.loop.time() < give_up:
            for play in self.playing:
                play.go_on(99)
            self.pass_time(0.25)
        assert not self.waiting, "somebody waits for ever"
        self.pass_time(2 * LONGEST_PROBE_INTERVAL_S)  # gauges are set as servers are asked

    def _check_ends(self) -> None:
        for client in self.clients:
            [end] = client.ends
            if end == "done":
                assert client.read == [list(range(num_tokens(each))) for each in client.asked]
            elif end not in ("left", "client_gone"):
                assert self._explains(client, end), f"{end} without a reason"

    def _explains(self, client: Client, end: str) -> bool:
        """Whether what happened to a request leads to this error."""
        plays = [[p for p in self.plays if p.request.id == each.id] for each in client.asked]
        failures = [[play.failed for play in each if play.failed] for each in plays]
        in_vain = any(choice.request.attempt >= ATTEMPTS for choice in client.choices)
        if end == "invalid_prompt":
            return any(failed.code == end for each in failures for failed in each)
        if end == "engine":
            blamed = [sum(failed.status == 500 for failed in each) for each in failures]
            return max(blamed) >= MOST_FAILED or in_vain
        if end == "no_model_server":
            assert client.request is not None
            return any(at >= client.request.started for at in self.none_ready_at)
        if end == "model_changed":
            return self.has_other_model and any(each.token_ids for each in client.choices)
        return end in ("model_server_lost", "model_server_busy") and in_vain

    def _check_nothing_is_held(self) -> None:
        gateway, value = self.gateway, self.gateway.metrics.registry.get_sample_value
        assert gateway.permits.in_flight == 0
        assert not gateway._open
        assert not gateway._batcher._window.queue
        assert not gateway._batcher._resuming
        for server in gateway.pool.servers:
            assert server.load.outstanding == 0
            assert not server.unacknowledged
            assert not server.calls
            held = value("medusa_gateway_model_server_requests", {"server": server.url})
            assert held == 0
        for name in ("running", "waiting"):
            assert value(f"medusa_gateway_num_requests_{name}") == 0
        assert not [machine for machine in self.machines if machine.open]


TestBatching = Batching.TestCase
TestBatching.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
