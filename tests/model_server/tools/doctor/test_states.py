"""The states are those behind the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context, ContextOptions
from model_server.llama.model import Model
from model_server.tools.doctor.states import StateReader

NUM_TOKENS = MAX_BATCH_ROWS + 70  # more than one decode


def test_states_times_the_output_matrix_are_the_logits(random_model_path: Path) -> None:
    model = Model(random_model_path, n_gpu_layers=0)
    tokens = np.random.default_rng(1).integers(0, model.vocab.size, NUM_TOKENS).tolist()
    reader = StateReader(model, NUM_TOKENS, n_threads=1)
    reader.read(tokens[::-1])  # leaves nothing behind
    states = reader.read(tokens)
    reader.close()

    header = model.open_header()
    output = header.tensors["output.weight"].rows().view(np.float32)
    header.close()
    context, batch = Context(model, ContextOptions(NUM_TOKENS, 1, 1)), LlamaBatch(MAX_BATCH_ROWS)
    for start in range(0, NUM_TOKENS, MAX_BATCH_ROWS):
        part = tokens[start : start + MAX_BATCH_ROWS]
        batch.clear()
        batch.add_rows(part, range(start, start + len(part)), [[0]] * len(part), output=True)
        context.decode(batch)
        found = states[start : start + len(part)] @ output.T
        assert np.abs(found - context.logits(len(part))).max() < 1e-3
    context.close()
    model.close()
