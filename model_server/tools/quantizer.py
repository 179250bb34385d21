"""llama.cpp's quantizer, run in a process of its own.

Inside it can't be told to stop, a spoiled file may end the process, and a failure leaves half a
file behind. `python -m model_server.tools.quantizer IN OUT TYPE` is that process.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from model_server.errors import CheckpointError
from model_server.llama import backend, ggml
from model_server.llama.gguf import GgufHeader
from model_server.tools.gguf_writer import whole
from model_server.tools.weight_types import BITS

_ROOT = Path(__file__).resolve().parents[2]
_AT_TENSOR = re.compile(r"\[ *(\d+)/ *\d+\]")  # as it begins with one
_UNROUNDED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class BaseWeights:
    """What a base GGUF holds. `type` is that of most of its weights."""

    count: int
    type: str
    rounded: bool
    num_tensors: int


def expected_bytes(num_weights: int, type_: str) -> int:
    """About the size of a file with so many weights."""
    return int(num_weights * BITS[type_] / 8)


def read(source: Path) -> BaseWeights:
    """What there is to quantize. Raises CheckpointError."""
    if not source.is_file():
        raise CheckpointError(str(source), "no such file")
    try:
        header = GgufHeader(source)
    except ValueError as error:
        raise CheckpointError(str(source), str(error)) from None
    counts: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[ggml.type_name(tensor.type)] += math.prod(tensor.shape)
    header.close()
    if not counts:
        raise CheckpointError(str(source), "holds no tensors")
    most = counts.most_common(1)[0][0]
    rounded = any(name not in _UNROUNDED for name in counts)
    return BaseWeights(counts.total(), most, rounded, len(header.tensors))


def quantize(source: Path, target: Path, type_: str, progress: Callable[[int], None]) -> None:
    """Write `source` in another type; `progress` hears how many tensors are done.

    Raises CheckpointError, or OSError of the disk. `target` appears when it is whole.
    """
    with whole(target) as part:
        command = [sys.executable, "-m", __name__, *map(str, (source.absolute(), part.absolute()))]
        # A session of its own: Ctrl-C reaches only this process, which then ends that one.
        child = subprocess.Popen(
            [*command, type_],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said = _follow(child, progress)
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            _raise_if_full(part)
            raise CheckpointError(str(source), f"can't be quantized to {type_}: {said}")


def _follow(child: subprocess.Popen[str], progress: Callable[[int], None]) -> str:
    """Hear numbers of finished tensors until it ends; whatever else it said last."""
    assert child.stdout is not None, "This is a bug."
    said = ""
    with child.stdout as lines:
        for line in map(str.strip, lines):
            if line.isdecimal():
                progress(int(line))
            elif line:
                said = line
    return said or f"llama.cpp ended with exit code {child.wait()}"


def _raise_if_full(part: Path) -> None:
    """llama.cpp names no reason when it can't write, so ask the disk for one."""
    with part.open("ab") as file:
        file.write(bytes(2**20))


class _Reporter(logging.Handler):
    """Turns llama.cpp's log into numbers of tensors; ends the process when nobody listens."""

    def emit(self, record: logging.LogRecord) -> None:
        if at := _AT_TENSOR.match(record.getMessage()):
            try:
                print(int(at[1]) - 1, flush=True)
            except OSError:
                os._exit(1)


def main(source: str, target: str, type_: str) -> int:
    """Quantize in this process. The exit code is 1, with the reason on stdout, if that fails."""
    backend.log.addHandler(_Reporter())
    backend.log.setLevel(logging.DEBUG)
    backend.init()
    params = llama_cpp.llama_model_quantize_default_params()
    name = f"LLAMA_FTYPE_MOSTLY_{type_}"
    params.ftype = getattr(llama_cpp, name)
    params.allow_requantize = True
    failed = llama_cpp.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    if failed:
        print(backend.last_error(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
