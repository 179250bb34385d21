"""llama.cpp as a plain reference: one sequence in a context of its own, nothing shared."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from model_server.llama import backend

FLASH_OFF, FLASH_ON = 0, 1
TYPE_BF16 = 30  # ggml.h; the bindings do not name it


class Reference:
    """A loaded model. Each call of `logits` decodes in a fresh context, F32 KV unless told."""

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        backend.init()  # one log callback for the process: another would hide errors from it
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._num_threads = num_threads

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Ids of a text; special tokens' texts stay text."""
        raw = text.encode()
        out = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), out, len(out), add_bos, False)
        return list(out[:count])

    def piece(self, token: int) -> bytes:
        """What one token adds to the text."""
        out = ctypes.create_string_buffer(64)
        size = llama_cpp.llama_token_to_piece(self._vocab, token, out, len(out), 0, False)
        return out.raw[:size]

    def logits(
        self,
        tokens: Sequence[int],
        *,
        flash_attention: bool = False,
        type_k: int = llama_cpp.GGML_TYPE_F32,
        type_v: int = llama_cpp.GGML_TYPE_F32,
        batch_rows: int = 512,
    ) -> npt.NDArray[np.float32]:
        """[token, vocabulary] logits after each token of one sequence."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(tokens))
        params.n_threads = params.n_threads_batch = self._num_threads
        params.flash_attn_type = FLASH_ON if flash_attention else FLASH_OFF
        params.type_k, params.type_v = type_k, type_v
        context = llama_cpp.llama_init_from_model(self._model, params)
        try:
            rows = [
                _decode(context, tokens, start, min(start + batch_rows, len(tokens)))
                for start in range(0, len(tokens), batch_rows)
            ]
            return np.concatenate([block.reshape(-1, self.vocab_size) for block in rows])
        finally:
            llama_cpp.llama_free(context)


def _decode(
    context: llama_cpp.llama_context_p, tokens: Sequence[int], start: int, stop: int
) -> npt.NDArray[np.float32]:
    batch = llama_cpp.llama_batch_init(stop - start, 0, 1)
    batch.n_tokens = stop - start
    for row, position in enumerate(range(start, stop)):
        batch.token[row], batch.pos[row] = tokens[position], position
        batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, 0, 1
    status = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status}")
    vocab = llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context))
    size = llama_cpp.llama_vocab_n_tokens(vocab) * (stop - start)
    return np.array(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (size,)))
