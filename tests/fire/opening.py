"""Opens files in forked processes, as the model server and its tools open them first.

A fork has everything imported, so that a file costs milliseconds instead of a second.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_server.config import ModelServerSettings
from model_server.contract.protocol import GenerateRequest
from model_server.engine.attention import open_context
from model_server.engine.layout import context_options
from model_server.engine.prompt import PromptEncoder, choose_template
from model_server.errors import RequestError, StartError
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import Context
from model_server.llama.model import Model
from model_server.medusa.heads import HeadOptions, Heads
from model_server.tools import convert_heads

MORE_BYTES = 2**30  # of addresses: threads' stacks, the pool of 4,096 cells
TIMEOUT_S = 30
_BUG, _REFUSED = 99, 1


@dataclass(frozen=True)
class Ended:
    """How a process ended: `signal` 0 where by itself."""

    code: int
    signal: int
    lines: Sequence[str]

    @property
    def said(self) -> str:
        """The last line."""
        return self.lines[-1] if self.lines else ""

    @property
    def what(self) -> str:
        """In a word, for tables."""
        if self.signal:
            return "hang" if self.signal == signal.SIGALRM else signal.Signals(self.signal).name
        return {0: "served", _REFUSED: "refused"}.get(self.code, "bug")


@dataclass(frozen=True)
class Bounds:
    """What a fork may take: memory, beside what it has at first, and time; and where it works."""

    folder: Path
    more_bytes: int = MORE_BYTES
    timeout_s: int = TIMEOUT_S


def forked(work: Callable[[], int], bounds: Bounds) -> Ended:
    """Run `work` in a fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        for target in (1, 2):
            os.dup2(writer, target)
        os._exit(_bounded(work, bounds))
    os.close(writer)
    with open(reader, "rb") as said:
        lines = [line for line in said.read().decode(errors="replace").splitlines() if line]
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Ended(-1, os.WTERMSIG(status), lines)
    return Ended(os.WEXITSTATUS(status), 0, lines)


def _bounded(work: Callable[[], int], bounds: Bounds) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + bounds.more_bytes,) * 2)
    os.chdir(bounds.folder)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(bounds.timeout_s)
    sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
    try:
        return work()
    except (StartError, RequestError) as error:
        print(error, flush=True)
        return _REFUSED
    except BaseException:
        traceback.print_exc()
        return _BUG
    finally:
        sys.stderr.flush()


def serve(base: Path, heads: Path | None) -> int:
    """All that a start does with files, and an answer of a few tokens."""
    settings = ModelServerSettings(model_path=base, n_threads=1)
    model = Model(base, 0, packed=True)
    size = min(model.context_size, 4_096)
    context = open_context(model, context_options(settings, size))
    opened = Heads(heads, model, HeadOptions(1, own_kernels=True)) if heads else None
    template = choose_template(model.chat_template, "", model.name)
    prompts = PromptEncoder(model.vocab, template, size)
    _vocabulary(model)
    tokens = prompts.encode(GenerateRequest(id="1", prompt="def f(é, <s> \n"))
    assert _answer(context, opened, tokens)
    return 0


def _vocabulary(model: Model) -> None:
    vocab = model.vocab
    assert vocab.longest_piece_bytes
    assert vocab.grammar_tokenizer
    assert vocab.special_texts is not None
    assert (vocab.bos_text, vocab.eos_text) is not None


def _answer(context: Context, heads: Heads | None, prompt: list[int]) -> list[int]:
    answer: list[int] = []
    batch = LlamaBatch(512)
    position, rows = 0, prompt
    for _ in range(4):
        batch.clear()
        for token in rows:
            batch.add(token, position, [0], output=True)
            position += 1
        context.set_embeddings(heads is not None)
        context.decode(batch)
        if heads:
            drawn = [int(np.argmax(context.logits(len(rows))[-1]))]
            heads.propose(context.hidden(len(rows))[-1:].copy(), drawn, heads.num_heads, 4)
        rows = [int(np.argmax(context.logits(len(rows))[-1]))]
        answer += rows
    return answer


def convert(source: Path, target: Path) -> int:
    """What a file of heads goes through before it can be served."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = convert_heads.main([str(source), str(target)])
    print(*err.getvalue().splitlines()[-1:], flush=True)
    return code
