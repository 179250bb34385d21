"""The shipped GGUF: it loads, it is small, and it knows Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.llama.batch import Batch
from model_server.llama.context import Context, ContextOptions
from model_server.training.demo import data
from model_server.training.demo.evaluate import Evaluator

MAX_BYTES = 25_000_000
NUM_FILES = 3
MAX_FILE_BYTES = 15_000
REQUIRED_UNDER_XZ = 0.25


def test_file_is_small(demo_gguf: Path) -> None:
    assert demo_gguf.stat().st_size <= MAX_BYTES


def test_metadata(evaluator: Evaluator) -> None:
    model = evaluator.model
    assert (model.architecture, model.name, model.context_size) == ("llama", "stdlib-demo", 2048)
    assert model.vocab.bos == 0
    assert model.vocab.end_tokens.tolist() == [1]
    assert model.vocab.eos_text == "<|end_of_text|>"


def test_chat_template_joins_the_messages(evaluator: Evaluator) -> None:
    jinja2 = pytest.importorskip("jinja2", reason="comes with llama-cpp-python")
    messages = [{"role": "system", "content": "import os"}, {"role": "user", "content": "def f():"}]
    template = jinja2.Template(evaluator.model.chat_template)
    assert template.render(messages=messages) == "import os\ndef f():\n"


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x\n",
        "é ü 中文 🙂 \u200d \x00",
        "a\r\n\r\n  b \t \n\n",
        "<|end_of_text|>",
        "",
    ],
)
def test_tokenizer_round_trips(evaluator: Evaluator, text: str) -> None:
    vocab = evaluator.model.vocab
    assert b"".join(map(vocab.piece, vocab.tokenize(text))).decode() == text


def test_held_out_files_cost_less_than_xz(evaluator: Evaluator, demo_held_out: Path) -> None:
    """The cheap version of the card's figure: the first small files of the list."""
    paths = data.read_held_out(demo_held_out)
    small = [p for p in paths if (data.stdlib() / p).stat().st_size < MAX_FILE_BYTES]
    assert evaluator.compression(small[:NUM_FILES]).below_xz > REQUIRED_UNDER_XZ


def test_rows_in_company_agree_exactly_in_exact_mode(evaluator: Evaluator) -> None:
    """Flash attention, K F16 and V BF16: the last token's logits do not depend on its batch."""
    options = ContextOptions(512, 1, 2, kv_type_k="f16", kv_type_v="bf16", flash_attention="on")
    context = Context(evaluator.model, options)
    tokens = evaluator.file_tokens("def add(a, b):\n    return a + b\n")
    together = decode(context, [tokens])
    one_by_one = decode(context, [[token] for token in tokens])
    context.close()
    assert np.array_equal(together, one_by_one)


def decode(context: Context, batches: list[list[int]]) -> NDArray[np.float32]:
    """Logits of the last token, after these batches of consecutive tokens."""
    context.clear()
    batch, position = Batch(64), 0
    for tokens in batches:
        batch.clear()
        for token in tokens:
            batch.add(token, position, [0], output=True)
            position += 1
        context.decode(batch)
    return np.array(context.logits(len(batches[-1]))[-1])
