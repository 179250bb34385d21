"""Watches the engine from a thread of its own: whether it lives, and whether its steps end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from model_server.engine.engine import Engine
from model_server.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

_DEAREST_STEPS, _AT_LEAST_S = 20, 10.0
_GIVE_UP = 3  # times as long
_TICK_S = 0.5


class Watchdog:
    """Counts the seconds without a step that ended, while there is work.

    It counts its own ticks: time in which the whole process stood still is nobody's fault.
    """

    def __init__(self, engine: Engine, give_up: Callable[[], None], longest_s: float = 0.0) -> None:
        """`give_up` is called when the engine hangs for good. `longest_s`: what a step may take; 0:
        what follows from the cost curve.
        """
        self.longest_s = longest_s or _longest_s(engine.scheduler)
        self._engine = engine
        self._give_up = give_up
        self._silent_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether the engine has died, or seems to hang."""
        return self._engine.has_ended or self._silent_s > self.longest_s

    def stop(self) -> None:
        """Watch no longer."""
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        seen, tick_s = -1, min(_TICK_S, self.longest_s / 4)
        while not self._stopping.wait(tick_s):
            steps = self._engine.num_steps
            self._silent_s = self._silent_s + tick_s if steps == seen else 0.0
            seen = steps if self._engine.is_busy else -1
            if self._silent_s > _GIVE_UP * self.longest_s:
                log.critical("no step ended in %.0f s: the engine hangs", self._silent_s)
                self._give_up()
                return


def _longest_s(scheduler: Scheduler) -> float:
    """Far longer than any step should take."""
    slots = scheduler.limits.num_slots
    decode_s = scheduler.costs.decode.seconds(slots, scheduler.kv.num_cells / slots, slots)
    return max(_AT_LEAST_S, _DEAREST_STEPS * max(decode_s, scheduler.limits.max_step_s))
