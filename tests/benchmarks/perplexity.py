"""Do the kernels of our own predict a text as well as llama.cpp's?

`python -m tests.benchmarks.perplexity [TEXT]` prints the perplexity over windows of the text by
both, and their ratio; the exit code is 1 where ours is more than 0.5 % worse.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.config import read_settings
from model_server.engine.attention import open_context
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context, ContextOptions
from model_server.llama.model import Model
from tests.benchmarks.arguments import count
from tests.benchmarks.files import ROOT

WINDOW = 512
AT_LEAST = 16  # tokens of a window that are read before its predictions count
LARGEST_RATIO = 1.005


def perplexity(path: Path, text: str, num_windows: int, *, own: bool, threads: int = 2) -> float:
    """By all kernels of our own, or by llama.cpp's."""
    model = Model(path, 0, packed=own)
    objection = "" if own else "for comparison"
    context = open_context(model, ContextOptions(WINDOW, 1, threads), objection)
    assert context.options.own_attention == own, "This is a bug: they can't be compared."
    tokens = model.vocab.tokenize(text)
    starts = range(0, min(len(tokens), num_windows * WINDOW) - AT_LEAST - 1, WINDOW)
    losses = [_losses(context, tokens[start : start + WINDOW]) for start in starts]
    context.close()
    model.close()
    return math.exp(float(np.concatenate(losses).mean()))


def _losses(context: Context, tokens: Sequence[int]) -> NDArray[np.float64]:
    context.clear()
    batch = LlamaBatch(MAX_BATCH_ROWS)
    batch.add_rows(tokens, range(len(tokens)), [[0]] * len(tokens), output=True)
    context.decode(batch)
    logits = context.logits(len(tokens)).astype(np.float64)[AT_LEAST:-1]
    top = logits.max(axis=1)
    norms = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return np.asarray(norms - logits[np.arange(len(logits)), tokens[AT_LEAST + 1 :]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.perplexity", description=__doc__
    )
    parser.add_argument("text", type=Path, nargs="?", default=ROOT / "deployment" / "OPERATION.md")
    parser.add_argument("--model", type=Path, help="the demo model")
    parser.add_argument("--windows", type=count, default=16, help=f"of {WINDOW} tokens, at most")
    args = parser.parse_args(arguments)
    path, text = args.model or read_settings().model_path, args.text.read_text(encoding="utf-8")
    stock, ours = (perplexity(path, text, args.windows, own=own) for own in (False, True))
    print(f"{path.stem}, {args.text.name}: {ours:.4f} by own kernels, {stock:.4f} by llama.cpp's,")
    print(f"ratio {ours / stock:.5f}, at most {LARGEST_RATIO}")
    return int(ours > stock * LARGEST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
