"""The processes of both tiers: started, watched, started again, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from model_server import places

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 40  # at least; open answers may have longer
BESIDE_DRAINING_S = 10
# A process that ends sooner after its start has died quickly; before each new start there is a
# longer pause, and once there is none left, no new start.
QUICK_S = 60.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
# Outlives whoever holds the other end of its stdin, by as long as a tier gets to finish.
GUARD = 'cat; kill -s TERM -- "-$0"; sleep "$1"; kill -s KILL -- "-$0"'
WHAT_HELPS: dict[int, str] = {
    signal.SIGILL: f"llama.cpp was made for another processor: run {places.rebuild()}.",
    signal.SIGKILL: "Most likely the memory was full: choose a smaller model, such as QUANT=Q4_0, "
    "or a smaller KV_CACHE_TOKENS.",
    signal.SIGABRT: "llama.cpp gave up; its last lines above say why.",
    signal.SIGSEGV: f"Fetch the model file again; if that doesn't help, {places.rebuild()}.",
    signal.SIGBUS: "A file that it read is cut off or its disk fails: fetch the model file again.",
}


@dataclass
class Tier:
    """A tier's process, and a guard that ends it should this process be killed."""

    name: str
    command: list[str]
    cwd: Path
    env: dict[str, str]
    num_quick_deaths: int = 0
    was_ready: bool = False
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._start_at = 0.0
        self._started = time.monotonic()
        # A session of its own: Ctrl-C reaches only this process, which then stops them in order.
        self.process = subprocess.Popen(
            self.command, cwd=self.cwd, env=self.env, start_new_session=True
        )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self.process.pid), str(self.stop_timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def stop_timeout_s(self) -> int:
        """How long it may take to end: what a gateway gives to open answers, and a little more."""
        drain_s = self.env.get("DRAIN_TIMEOUT", "")
        longest_s = int(drain_s) + BESIDE_DRAINING_S if drain_s.isdecimal() else 0
        return max(STOP_TIMEOUT_S, longest_s)

    def start_later(self) -> float | None:
        """The pause before it is started again; None: it has died quickly too often, or was never
        ready, and then what it says is what has to be mended.
        """
        lived_s = time.monotonic() - self._started
        self.num_quick_deaths = self.num_quick_deaths + 1 if lived_s < QUICK_S else 1
        if not self.was_ready or self.num_quick_deaths > len(PAUSES_S):
            return None
        pause_s = PAUSES_S[self.num_quick_deaths - 1]
        self._start_at = time.monotonic() + pause_s
        return pause_s

    def start_if_due(self) -> None:
        if self._start_at and time.monotonic() >= self._start_at:
            self.start()

    @property
    def is_waiting(self) -> bool:
        return self._start_at > 0

    def dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.communicate()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers


class Processes:
    """The tiers, in the order they start; they stop the other way round."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._tiers: list[Tier] = []

    def start(self, name: str, module: str, env: dict[str, str]) -> Tier:
        tier = Tier(name, [sys.executable, "-m", module], self._cwd, env)
        self._tiers.append(tier)
        return tier

    def ended(self) -> Tier | None:
        """One that ended by itself and does not wait to be started again; who waits, may start."""
        for tier in self._tiers:
            tier.start_if_due()
            if not tier.is_waiting and tier.process.poll() is not None:
                tier.dismiss_guard()
                return tier
        return None

    def stop(self) -> None:
        """Ask each to finish what it has open; after that, or when asked again, make it."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: self._kill())
        for tier in reversed(self._tiers):
            tier.process.terminate()
            try:
                tier.process.wait(tier.stop_timeout_s)
            except subprocess.TimeoutExpired:
                self._kill()
                tier.process.wait()
            tier.dismiss_guard()

    def _kill(self) -> None:
        for tier in self._tiers:
            tier.kill()


def ending(name: str, code: int) -> str:
    """How a process ended; a negative code is the signal that ended it."""
    if code >= 0:
        return f"The {name} ended (exit code {code})"
    try:
        signal_name = signal.Signals(-code).name
    except ValueError:  # most real-time signals have none
        signal_name = f"signal {-code}"
    return f"The {name} was ended by {signal_name}"


def what_follows(tier: Tier) -> tuple[bool, str]:
    """Whether a tier that ended is started again, and a sentence: how it ended, what helps."""
    code = tier.process.returncode
    pause_s = tier.start_later() if tier.name == "model server" else None
    if pause_s is not None:
        then = f"; it is started again in {pause_s:g} s."
    elif tier.num_quick_deaths > len(PAUSES_S):
        times = f"{tier.num_quick_deaths} times within {QUICK_S:g} s of its start"
        then = f", the last of {times}, so everything stops."
    else:
        then = ", so everything stops."
    said = f"{ending(tier.name, code)}{then} {WHAT_HELPS.get(-code, '')}".rstrip()
    return pause_s is not None, said
