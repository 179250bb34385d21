"""What rows cost: whole decodes by our kernels against llama.cpp's, beside what the machine allows.

Both load the same 7B-shaped file and decode the same rows in turns; a ratio is the median of its
rounds', to the better of llama.cpp's attentions. Two limits stand beside the times: the bytes that
a step must read, at the speed at which this machine reads, and its products, at the speed of its
units: that of BLAS in F32, four times as many in int8, as one instruction does.
`python -m tests.benchmarks.rows --types Q4_0 Q8_0 Q4_K F16`
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from model_server.llama import backend, kernels
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context, ContextOptions
from model_server.llama.gguf import GgufHeader
from model_server.llama.model import Model
from tests import twin
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count, weights

STOCK = ("off", "on")  # flash attention
OWN = "own"
SHAPE = twin.VICUNA_7B
KV_BYTES = 2  # F16
MACS_A_CELL = 2 * SHAPE.hidden  # of scores and values, a layer and row
FLOATS = ("F16", "F32")
RESTING_S = 0.02  # threads of OpenMP look out for work some milliseconds after their last


@dataclass(frozen=True)
class Case:
    """`streams` requests of `length` cells each, with `rows` new rows each."""

    streams: int
    rows: int
    length: int

    def __str__(self) -> str:
        if self.rows == MAX_BATCH_ROWS:
            return "prefill"
        return "a tree" if self.streams == 1 else f"{self.streams} requests"


CASES = (
    *(Case(1, rows, 0) for rows in (1, 2, 4, 8, 12, 16, MAX_BATCH_ROWS)),
    *(Case(1, rows, 1_500) for rows in (1, 4, 8, 16)),
    Case(4, 1, 1_500),
)


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured."""

    bytes_a_second: float
    macs_a_second: float  # in F32

    @classmethod
    def measured(cls, threads: int) -> Limits:
        many = np.ones(1 << 28, np.float32)
        parts = np.array_split(many, threads)
        square = np.ones((2_048, 2_048), np.float32)
        with ThreadPoolExecutor(threads) as pool:
            reading_s = _quickest(lambda: list(pool.map(np.dot, parts, parts)))
        return cls(many.nbytes / reading_s, len(square) ** 3 / _quickest(lambda: square @ square))


def _quickest(work) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@dataclass(frozen=True)
class Work:
    """What a step of a file reads and multiplies."""

    weight_bytes: int
    weight_macs: int  # a row
    layers: int
    a_float: bool

    @classmethod
    def of(cls, path: Path, layers: int, file_type: str) -> Work:
        header = GgufHeader(path)
        tensors = [
            tensor
            for name, tensor in header.tensors.items()
            if len(tensor.shape) == 2 and name != "token_embd.weight"
        ]
        header.close()
        size = path.stat().st_size  # the embedding is read by rows
        share = sum(int(np.prod(tensor.shape)) for tensor in tensors)
        everything = share + SHAPE.vocab_size * SHAPE.hidden
        return cls(size * share // everything, share, layers, file_type in FLOATS)

    def memory_s(self, case: Case, limits: Limits) -> float:
        cells = case.streams * (case.length + case.rows)
        kv = 2 * cells * SHAPE.hidden * KV_BYTES * self.layers
        return (self.weight_bytes + kv) / limits.bytes_a_second

    def arithmetic_s(self, case: Case, limits: Limits) -> float:
        rows = case.streams * case.rows
        rate = limits.macs_a_second
        attention = rows * (case.length + case.rows / 2) * MACS_A_CELL * self.layers / rate
        return attention + rows * self.weight_macs / (rate if self.a_float else 4 * rate)


@contextmanager
def opened(path: Path, threads: int) -> Iterator[dict[str, Context]]:
    """A context a side, over the file loaded twice: as it is, and packed."""
    backend.init()
    kernels.registry()
    models = {False: Model(path, 0), True: Model(path, 0, packed=True)}
    num_cells = 4 * 1_500 + MAX_BATCH_ROWS
    contexts = {}
    for side in (*STOCK, OWN):
        own = side == OWN
        flash = "on" if own else side
        options = ContextOptions(num_cells, 8, threads, flash_attention=flash, own_attention=own)
        contexts[side] = Context(models[own], options)
    try:
        yield contexts
    finally:
        for context in contexts.values():
            context.close()
        for model in models.values():
            model.close()


def measure(contexts: dict[str, Context], case: Case, repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's decodes, in turns."""
    for context in contexts.values():
        _fill(context, case)
    repeats = min(repeats, 3) if case.rows == MAX_BATCH_ROWS else repeats
    times: dict[str, list[float]] = {side: [] for side in contexts}
    for number in range(repeats + 1):  # the first warms up
        for side, context in contexts.items():
            seconds = _timed(context, case)
            if number:
                times[side].append(seconds)
    return times


def _fill(context: Context, case: Case) -> None:
    """Bring the sequences to the case's length: the first by decoding, the others as its copies."""
    lengths = [context.length(seq) for seq in range(case.streams)]
    if set(lengths) == {case.length} and not context.length(case.streams):
        return
    kernels.take_attention(context.options.own_attention)
    if lengths[0] != case.length:
        context.clear()
        batch = LlamaBatch(MAX_BATCH_ROWS)
        for start in range(0, case.length, MAX_BATCH_ROWS):
            batch.clear()
            batch.add_span([7] * min(MAX_BATCH_ROWS, case.length - start), start, 0)
            context.decode(batch)
    for seq in range(1, case.streams):
        _copy_cells(context, seq)


def _copy_cells(context: Context, seq: int) -> None:
    """Give `seq` cells of its own with what sequence 0 holds."""
    size = llama_cpp.llama_state_seq_get_size(context.pointer, 0)
    state = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context.pointer, state, size, 0)
    assert llama_cpp.llama_state_seq_set_data(context.pointer, state, size, seq) == size


def _timed(context: Context, case: Case) -> float:
    kernels.take_attention(context.options.own_attention)
    batch = LlamaBatch(case.streams * case.rows)
    positions = range(case.length, case.length + case.rows)
    tokens = range(100, 100 + case.rows)
    for seq in range(case.streams):
        if case.rows == MAX_BATCH_ROWS:
            batch.add_span(tokens, case.length, seq)
        else:
            batch.add_rows(tokens, positions, [[seq]] * case.rows, output=True)
    time.sleep(RESTING_S)
    started = time.perf_counter()
    context.decode(batch)
    context.synchronize()
    seconds = time.perf_counter() - started
    for seq in range(case.streams):
        context.remove(seq, case.length)
    return seconds


def line(
    file_type: str, case: Case, times: dict[str, list[float]], work: Work, limits: Limits
) -> dict[str, str]:
    stock = min((times[side] for side in STOCK), key=statistics.median)
    ratio = statistics.median(own / its for own, its in zip(times[OWN], stock, strict=True))

    def ms(seconds: float) -> str:
        return f"{1_000 * seconds:.1f}"

    return {
        "type": file_type,
        "cells": str(case.length),
        "what": str(case),
        "rows": str(case.streams * case.rows),
        "llama.cpp, ms": ms(statistics.median(stock)),
        "here, ms": ms(statistics.median(times[OWN])),
        "ratio": f"{ratio:.2f}",
        "memory alone, ms": ms(work.memory_s(case, limits)),
        "arithmetic alone, ms": ms(work.arithmetic_s(case, limits)),
    }


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rows", description=__doc__)
    add = parser.add_argument
    add("--types", nargs="+", type=weights, default=["Q4_0", "Q8_0", "Q4_K", "F16"])
    add("--layers", type=count, default=8)
    add("--threads", type=count, default=2)
    add("--repeats", type=count, default=9, help="of each side, in turns")
    return parser.parse_args(arguments)


def main() -> None:
    args = options()
    limits = Limits.measured(args.threads)
    for file_type in args.types:
        path = files.twin_file(args.layers, file_type)
        work = Work.of(path, args.layers, file_type)
        rows = []
        with opened(path, args.threads) as contexts:
            for case in CASES:
                rows.append(
                    line(file_type, case, measure(contexts, case, args.repeats), work, limits)
                )
                print(" ".join(rows[-1].values()), flush=True)
        title = (
            f"Whole decodes of {args.layers} layers of a 7B shape, by {kernels.instructions()}; "
            f"medians of {args.repeats} rounds in turns. {limits.bytes_a_second / 1e9:.0f} GB/s "
            f"read, {limits.macs_a_second / 1e9:.0f} G products/s in F32. "
            f"{report.machine()}, {args.threads} threads, {report.now()}."
        )
        text = f"{title}\n\n{report.markdown(rows)}"
        kind = f"rows-{file_type.lower()}-{kernels.instructions()}"
        report.save(kind, csv=report.as_csv(rows), md=text)
        print(f"\n{text}")


if __name__ == "__main__":
    main()
