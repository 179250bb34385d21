"""The model card: what the model is, its measured figures, a sample."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.training.demo.data import Split
from model_server.training.demo.evaluate import MAX_NEW_TOKENS, Completion, Compression
from model_server.training.demo.export import LICENSE
from model_server.training.demo.model import Shape
from model_server.training.demo.train import LONG, SHORT, Budget, Progress
from model_server.training.demo.windows import LIBRARY_WEIGHT

TEMPLATE = """\
# {name}

A small model of Python code, trained from scratch on the Python standard library's source.
It completes code; it follows no instructions. It is here so that the server has something to
serve, and so that speculative decoding can be measured, without a download.

|  |  |
| --- | --- |
| File | `{file}`, {megabytes:.1f} MB, matrices Q8_0, norms F32 |
| Size | {parameters:.1f} M parameters, {s.layers} layers, width {s.hidden} |
| Architecture | `llama`, {s.heads} heads, SwiGLU of {s.feed_forward}, untied output matrix |
| Context | {s.context} tokens, RoPE base {s.rope_base:.0f} |
| Tokenizer | byte-level BPE, {s.vocab} tokens, Llama 3's pre-tokenizer (`llama-bpe`) |
| Licence | {licence}, that of the text it was trained on |

The chat template joins the messages, each followed by a newline: send code, get what follows it.

## Data

The source of CPython {python}'s standard library: {library} library files and {tests} test
files, the library read {weight} times as often. Left out are tables (encodings, files that are
mostly digits), files that do not parse, the {held_out} held-out files listed in
[`held_out.txt`](held_out.txt), and every file that shares a quarter of its longer lines with one
of those.

## Training

{tokens:.1f} M tokens in {steps} steps and {minutes:.1f} minutes, {threads} threads on a CPU:
windows of {short} tokens, and in the last {long_share:.0%} of the time windows of {long} tokens of
the library alone. Muon for the layers' matrices, AdamW for the rest; the learning rate falls
linearly to zero.

## Figures

Measured on this file, through llama.cpp, on the held-out files ({kilobytes:.0f} kB).

| Figure | Model | `xz -9` |
| --- | --- | --- |
| Bits per byte, all files together | {c.bits_per_byte:.3f} | {c.xz_bits_per_byte:.3f} |
| Bits per byte, mean of the files | {c.mean_per_file:.3f} | {c.xz_mean_per_file:.3f} |

- {c.below_xz:.1%} {side} `xz -9` of the concatenated files; the model sees each file alone.
- Perplexity {c.perplexity:.2f} per token, {bytes_per_token:.2f} bytes per token.
- {parsed} of {headers} completed functions parse. A function's header is given with the file
  before it, as far as the context reaches. Decoding is greedy, at most {max_new} tokens, cut at the
  dedent that ends the function or else at the last whole line.

## Sample

The first {num_samples} of those functions. All but the header is the model's.

{samples}

## Rebuild

`make demo-model`, or `python -m model_server.training.demo --minutes {minutes:.0f}`: corpus,
tokenizer, training, GGUF, figures and this card. Seeded; the schedule follows the clock, so the
weights depend on the speed of the machine.
"""
SAMPLE = """\
`{header.name}` in `{header.path}`:

```python
{source}
```"""
NUM_SAMPLES = 3


@dataclass(frozen=True)
class Record:
    """What was trained, how, and how it did."""

    file: Path
    shape: Shape
    split: Split
    budget: Budget
    progress: Progress
    num_parameters: int
    compression: Compression
    completions: Sequence[Completion]


def write_card(record: Record, path: Path) -> None:
    c, progress = record.compression, record.progress
    text = TEMPLATE.format(
        name=record.file.stem,
        file=record.file.name,
        megabytes=record.file.stat().st_size / 1e6,
        s=record.shape,
        parameters=record.num_parameters / 1e6,
        licence=LICENSE,
        python=platform.python_version(),
        library=len(record.split.library),
        tests=len(record.split.tests),
        held_out=len(record.split.held_out),
        tokens=progress.tokens / 1e6,
        steps=progress.step,
        minutes=progress.elapsed_s / 60,
        threads=record.budget.threads,
        short=SHORT.length,
        long=LONG.length,
        long_share=LONG.until - SHORT.until,
        weight=LIBRARY_WEIGHT,
        c=c,
        side="under" if c.below_xz > 0 else "over",
        kilobytes=c.num_bytes / 1e3,
        bytes_per_token=c.num_bytes / c.num_tokens,
        parsed=sum(completion.parses for completion in record.completions),
        headers=len(record.completions),
        max_new=MAX_NEW_TOKENS,
        num_samples=NUM_SAMPLES,
        samples="\n\n".join(map(sample, record.completions[:NUM_SAMPLES])),
    )
    path.write_text(text, encoding="utf-8")


def sample(completion: Completion) -> str:
    source = textwrap.dedent(completion.source).rstrip()
    return SAMPLE.format(header=completion.header, source=source)
