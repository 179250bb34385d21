"""A model server whose decodes take a while, however quick the machine: what is done while it
answers, by a browser for one, finds it answering. `python -m tests.e2e.paced`.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from typing import Any

import llama_cpp

DECODE_S = 0.015


def main() -> None:
    true_decode: Callable[[Any, Any], int] = llama_cpp.llama_decode

    def decode(context: Any, batch: Any) -> int:
        until = time.perf_counter() + DECODE_S
        code = true_decode(context, batch)
        time.sleep(max(0.0, until - time.perf_counter()))
        return code

    llama_cpp.llama_decode = decode
    runpy.run_module("model_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
