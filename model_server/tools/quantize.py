"""A base GGUF in another type.

Done by llama.cpp's own quantizer. OUT appears when it is whole.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from model_server.tools import options, quantizer
from model_server.tools.outcome import exit_code, refuse_no_folder, refuse_own_source, require_space
from model_server.tools.progress import Progress, in_words

# Measured on normally distributed weights, against quantizing from F16.
_FROM_Q8_0 = "their error grows by 0.3 % at 4 bits, 1 % at 5, 5 % at 6"
_FROM_LESS = "from so few bits it can be much"


def quantize(source: Path, target: Path, type_: str) -> None:
    """Write `source` in another type and say how that goes.

    Raises CheckpointError, NoSpaceError, or OSError of the disk.
    """
    refuse_own_source(target, source)
    weights = quantizer.read(source)
    refuse_no_folder(target)
    require_space(target.parent, quantizer.expected_bytes(weights.count, type_))
    print(f"Quantizing {source} to {type_}.", flush=True)
    if weights.rounded:
        price = _FROM_Q8_0 if weights.type == "Q8_0" else _FROM_LESS
        print(f"Its weights are {weights.type} already. Rounding twice costs quality: {price}.")
        print("Quantizing from F16 is best.", flush=True)
    with Progress(target.name, weights.num_tensors) as progress:
        quantizer.quantize(source, target, type_, progress)
        progress(weights.num_tensors)
    print(f"  {target}: {in_words(target.stat().st_size)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantize. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = options.quantize(arguments)
    return exit_code(
        lambda: quantize(args.source, args.target, args.type), args.target, "nothing was written"
    )


if __name__ == "__main__":
    sys.exit(main())
