"""Which model server a request goes to, without clock or I/O: least work, or a prefix it holds."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from model_server.contract.protocol import GenerateRequest

CHUNK_TOKENS = 32
CHUNK_CHARS = 4 * CHUNK_TOKENS
MAX_CHUNKS = 512

# A held prefix saves one prefill, a busier server slows every step of the answer: so the holder is
# preferred while it has at most half its slots more to do than the least busy one. Who is sent
# elsewhere leaves the prefix there, so a prefix that many ask for spreads as far as it must.
IMBALANCE = 0.5

# One that needs so many times as long as the fastest, for a token or until it answers a probe, is
# slow: it gets nothing while another has a free slot, and then counts as that much smaller. Its
# pace is forgotten after a while, so that it is tried again.
SLOW = 3.0
PACE_KEPT_S = 10.0
FAST_S, NEAR_S = 0.005, 0.05  # a token, a probe; what is faster differs by chance

# A server that comes (back) has cold caches, and an idle one would draw everything at once.
SLOW_START_S = 10.0
FIRST_SHARE = 0.1


def chunks(request: GenerateRequest) -> list[int]:
    """A hash for each whole chunk of the prompt that stands for all of the prompt up to its end."""
    prompt: str | tuple[int, ...]
    if request.prompt_tokens is not None:
        prompt, size = tuple(request.prompt_tokens), CHUNK_TOKENS
    else:
        turns = (f"{turn.role}\0{turn.content}" for turn in request.messages or ())
        prompt, size = request.prompt or "\0".join(turns), CHUNK_CHARS
    found, before = [], hash(request.prefix_owner)
    for end in range(size, min(len(prompt), MAX_CHUNKS * size) + 1, size):
        before = hash((before, prompt[end - size : end]))
        found.append(before)
    return found


class ServerLoad:
    """A server as the balancer sees it. Times are seconds of one clock."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.slots = 1
        self._max_chunks = 0
        self._chunks = OrderedDict[int, None]()  # of the prompts that it was sent last
        self.last_taken = 0.0
        self.delay_s = 0.0  # until it answered the last probe
        self.opened = 0.0  # from then on it starts slowly
        self._pace_s = 0.0  # a token; 0: not known
        self._paced = 0.0

    def open(self, slots: int, kv_cache_tokens: int, now: float) -> None:
        """It came, or came back: its caches are cold, and it starts slowly."""
        self.slots = slots
        self._max_chunks = kv_cache_tokens // CHUNK_TOKENS
        self._chunks.clear()
        self.opened = now

    def note_pace(self, seconds_a_token: float, now: float) -> None:
        """An answer came at this pace, once it had begun."""
        known, seconds_a_token = self.pace_s(now), max(seconds_a_token, FAST_S)
        self._pace_s = (known + seconds_a_token) / 2 if known else seconds_a_token
        self._paced = now

    def pace_s(self, now: float) -> float:
        """Seconds a token of late; 0: not known."""
        return self._pace_s if now - self._paced < PACE_KEPT_S else 0.0

    def take(self, prompt: Sequence[int], now: float) -> None:
        self.outstanding += 1
        self.last_taken = now
        for chunk in reversed(prompt):
            self._chunks[chunk] = None
            self._chunks.move_to_end(chunk)
        while len(self._chunks) > self._max_chunks:
            self._chunks.popitem(last=False)

    def give_back(self) -> None:
        self.outstanding -= 1
        assert self.outstanding >= 0, "more requests given back than taken. This is a bug."

    def num_held(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's chunks, from its first on, it was sent before."""
        if not prompt or prompt[0] not in self._chunks:
            return 0
        # A chunk is never older than those behind it, so what is held is held from the start.
        return bisect_left(prompt, True, key=lambda chunk: chunk not in self._chunks)

    def share(self, now: float) -> float:
        """The part of its slots that it counts with: grows to 1 over SLOW_START_S."""
        age_s = now - self.opened
        return 1.0 if age_s >= SLOW_START_S else max(FIRST_SHARE, age_s / SLOW_START_S)


def choose(
    servers: Sequence[ServerLoad], prompt: Sequence[int], now: float, free: Sequence[object] = ()
) -> int:
    """Index of the server for one more request of these chunks: a free one, if it is as good."""
    shares = [server.share(now) for server in servers]
    most = max(shares)  # servers that all come at once need not spare each other
    paces = _slowness([server.pace_s(now) for server in servers])
    delays = _slowness([max(server.delay_s, NEAR_S) for server in servers])
    slowness = [max(each) for each in zip(paces, delays, strict=True)]
    loads = [
        (server.outstanding + 1) * slow * most / (server.slots * share)
        for server, share, slow in zip(servers, shares, slowness, strict=True)
    ]
    allowed: Sequence[int] = range(len(servers))
    if max(slowness) > 1:
        quick = [index for index in allowed if slowness[index] == 1]
        idle = [index for index in quick if servers[index].outstanding < servers[index].slots]
        allowed = idle or allowed
    allowed = [index for index in allowed if servers[index] in free] or allowed
    limit = min(loads[index] for index in allowed) + IMBALANCE
    ranks = [
        (-servers[index].num_held(prompt), loads[index], servers[index].last_taken, index)
        for index in allowed
        if loads[index] <= limit
    ]
    return min(ranks)[-1]


def _slowness(times: Sequence[float]) -> list[float]:
    """1 for those that are about as fast as the fastest, or of which nothing is known."""
    fastest = min((each for each in times if each), default=0.0)
    return [each / fastest if each > SLOW * fastest > 0 else 1.0 for each in times]
