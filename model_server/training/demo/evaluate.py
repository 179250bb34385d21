"""Figures of the GGUF itself, through llama.cpp: held-out bits per byte, parsed completions."""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.llama.batch import Batch
from model_server.llama.context import Context, ContextOptions
from model_server.llama.model import Model
from model_server.training.demo import data
from model_server.training.demo.functions import Header, choose_headers, cut, is_over, parses

BATCH_ROWS = 512
NUM_HEADERS = 50
MAX_PROMPT_TOKENS = 1536
MAX_NEW_TOKENS = 256
XZ_PRESET = 9


@dataclass(frozen=True)
class Compression:
    """What the model and xz need for the same files, in bits per byte."""

    num_bytes: int
    num_tokens: int
    nats: float
    xz_bytes: int
    mean_per_file: float
    xz_mean_per_file: float

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def xz_bits_per_byte(self) -> float:
        return 8 * self.xz_bytes / self.num_bytes

    @property
    def below_xz(self) -> float:
        """Share by which the model is under xz."""
        return 1 - self.bits_per_byte / self.xz_bits_per_byte

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.num_tokens)


@dataclass(frozen=True)
class Completion:
    header: Header
    source: str

    @property
    def parses(self) -> bool:
        return parses(self.source)


class Evaluator:
    """One loaded model and one context of its full size."""

    def __init__(self, path: Path, n_threads: int) -> None:
        self.model = Model(path, n_gpu_layers=0)
        self.context = Context(self.model, ContextOptions(self.model.context_size, 1, n_threads))
        self.batch = Batch(BATCH_ROWS)

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def compression(self, paths: Sequence[str]) -> Compression:
        """Each file is scored from its beginning to its end token; xz has them all in one."""
        files = [data.read(path).encode() for path in paths]
        tokens = [self.file_tokens(file.decode()) for file in files]
        nats = [float(self.nats(file_tokens).sum()) for file_tokens in tokens]
        bits = [n / math.log(2) / len(file) for n, file in zip(nats, files, strict=True)]
        xz_bits = [8 * xz_size(file) / len(file) for file in files]
        return Compression(
            num_bytes=sum(map(len, files)),
            num_tokens=sum(len(file_tokens) - 1 for file_tokens in tokens),
            nats=sum(nats),
            xz_bytes=xz_size(b"".join(files)),
            mean_per_file=float(np.mean(bits)),
            xz_mean_per_file=float(np.mean(xz_bits)),
        )

    def completions(self, paths: Sequence[str]) -> list[Completion]:
        return [
            Completion(header, self.complete(header))
            for header in choose_headers(paths, NUM_HEADERS)
        ]

    def file_tokens(self, text: str) -> list[int]:
        vocab = self.model.vocab
        assert vocab.bos is not None, "This is a bug."
        return [vocab.bos, *vocab.tokenize(text), int(vocab.end_tokens[0])]

    def nats(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Of each token after the first, given at least half a context where there is so much."""
        width, start, scored, parts = self.context.num_cells, 0, 1, []
        while scored < len(tokens):
            window = tokens[start : start + width]
            parts.append(self.window_nats(window)[scored - start - 1 :])
            scored = start + len(window)
            start += width // 2
        return np.concatenate(parts)

    def window_nats(self, window: Sequence[int]) -> NDArray[np.float64]:
        self.context.clear()
        parts = []
        for start in range(0, len(window) - 1, BATCH_ROWS):
            targets = window[start + 1 : start + 1 + BATCH_ROWS]
            logits = self.decode(window[start : start + len(targets)], start)
            parts.append(cross_entropy(logits, np.array(targets)))
        return np.concatenate(parts)

    def complete(self, header: Header) -> str:
        """The header with its greedy completion, cut at a dedent or else at the last whole line."""
        tokens = self.file_tokens(header.context + header.text)[:-1]
        tokens = tokens[:1] + tokens[1:][-MAX_PROMPT_TOKENS:]
        self.context.clear()
        logits = self.prefill(tokens)
        body = b""
        for position in range(len(tokens), len(tokens) + MAX_NEW_TOKENS):
            token = int(logits.argmax())
            if token in self.model.vocab.end_tokens:
                break
            body += self.model.vocab.piece(token)
            if is_over(body.decode(errors="replace"), header.indent):
                break
            logits = self.decode([token], position)[-1]
        return header.text + cut(body.decode(errors="replace"), header.indent)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        for start in range(0, len(tokens), BATCH_ROWS):
            logits = self.decode(tokens[start : start + BATCH_ROWS], start)
        last: NDArray[np.float32] = logits[-1]
        return last

    def decode(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits of every token. A view: the next call overwrites it."""
        self.batch.clear()
        for offset, token in enumerate(tokens):
            self.batch.add(token, position + offset, [0], output=True)
        self.context.decode(self.batch)
        return self.context.logits(len(tokens))


def cross_entropy(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p of the target of each row, in nats."""
    rows = logits.astype(np.float64)
    highest = rows.max(axis=1)
    sums = np.exp(rows - highest[:, None]).sum(axis=1)
    nats: NDArray[np.float64] = highest + np.log(sums) - rows[np.arange(len(rows)), targets]
    return nats


def xz_size(content: bytes) -> int:
    return len(lzma.compress(content, preset=XZ_PRESET))
