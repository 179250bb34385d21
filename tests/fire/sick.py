"""A tier as it is, but for what a file says is wrong with it: faults that come from within.

`TIER=api|model_server FAULT_FILE=path python -m tests.fire.sick`. The file is read all the time; in
it is a fault and a number, or nothing. An engine's faults are those of the call that decodes.
"""

from __future__ import annotations

import ctypes
import math
import os
import runpy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp

POLL_S = 0.02
HANG_S = 600.0
SLOWER = 10
PACE_S = 0.040, 0.002  # a decode takes, and each row of it, where a server is paced
_FAILED = -3  # what llama_decode answers when the computation failed


class Sickness:
    """What the file says, read by a thread of its own: `fault`, and its number."""

    def __init__(self, path: Path) -> None:
        self.fault, self.number = "", 0.0
        self._path = path
        threading.Thread(target=self._follow, daemon=True).start()

    def cure(self) -> None:
        """The fault was one of a single time."""
        self._path.write_text("")
        self.fault = ""

    def _follow(self) -> None:
        while True:
            fault, _, number = self._path.read_text().partition(" ")
            self.number = float(number or 0)
            self.fault = fault
            time.sleep(POLL_S)


def spoil_clock(sickness: Sickness) -> None:
    """What the calendar's clock shows; as in a real step of it, monotonic clocks go on."""
    true_time, true_time_ns = time.time, time.time_ns

    def offset() -> float:
        return sickness.number if sickness.fault == "clock" else 0.0

    time.time = lambda: true_time() + offset()
    time.time_ns = lambda: true_time_ns() + int(1e9 * offset())


def spoil_decode(sickness: Sickness) -> None:
    """What llama.cpp's decode does."""
    true_decode: Callable[[Any, Any], int] = llama_cpp.llama_decode

    def decode(context: Any, batch: Any) -> int:
        fault = sickness.fault
        if fault == "fail_once":
            sickness.cure()
            return _FAILED
        tokens = batch.token[: batch.n_tokens]
        if fault == "fail" or (fault == "poison" and sickness.number in tokens):
            return _FAILED
        if fault == "hang":
            time.sleep(HANG_S)
        started = time.perf_counter()
        code = true_decode(context, batch)
        spent_s = time.perf_counter() - started
        if fault == "slow":
            time.sleep((SLOWER - 1) * spent_s)
        if fault == "pace":
            time.sleep(max(0.0, PACE_S[0] + PACE_S[1] * batch.n_tokens - spent_s))
        if fault == "nan":
            _spoil_logits(context, sum(batch.logits[: batch.n_tokens]))
        return code

    llama_cpp.llama_decode = decode


def _spoil_logits(context: Any, num_rows: int) -> None:
    model = llama_cpp.llama_get_model(context)
    size = num_rows * llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = llama_cpp.llama_get_logits(context)
    if logits and size:
        address = ctypes.addressof(logits.contents)
        (ctypes.c_float * size).from_address(address)[:] = [math.nan] * size


def main() -> None:
    sickness = Sickness(Path(os.environ["FAULT_FILE"]))
    spoil_clock(sickness)
    spoil_decode(sickness)
    runpy.run_module(os.environ["TIER"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
