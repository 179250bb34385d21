"""One llama.cpp context: the KV pool and the decode call."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from model_server.errors import EngineError, LogitsError, StartError
from model_server.llama import backend, kernels
from model_server.llama.batch import LlamaBatch
from model_server.llama.model import Model
from model_server.sampling import is_finite

MAX_SEQS = 256  # LLAMA_MAX_SEQ
MAX_BATCH_ROWS = 512
# llama.cpp rounds the pool up to whole blocks, but its row limits only when told beforehand.
_CELL_BLOCK = 256

_PROVEN_ROWS = 4

# Rows times threads squared, for which one thread does what is left to llama.cpp beside kernels of
# our own: norms, rotations, activations. It is 1 to 2 % of a step with two threads.
_ALONE = 64

_NO_POOLING = 0  # enum llama_pooling_type
_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # enum ggml_type
# Dozens of short calls a step: letting go of the interpreter in each invites others to take it.
_HOLDING = ctypes.PyDLL("", handle=llama_cpp.llama_cpp._lib._handle)
_seq_cp = _HOLDING.llama_memory_seq_cp
_seq_cp.argtypes, _seq_cp.restype = llama_cpp.llama_memory_seq_cp.argtypes, None
_seq_rm = _HOLDING.llama_memory_seq_rm
_seq_rm.argtypes, _seq_rm.restype = llama_cpp.llama_memory_seq_rm.argtypes, ctypes.c_bool

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type


@dataclass(frozen=True)
class ContextOptions:
    """How the context is laid out and computed.

    `unified`: one pool of cells for all sequences, which may share some; else each has a part of
    its own, and a row's attention walks no other's. `own_attention`: by kernels of our own.
    """

    num_cells: int
    num_seqs: int
    n_threads: int
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: str = "auto"
    unified: bool = True
    own_attention: bool = False

    @property
    def mode(self) -> str:
        """Names all settings that change numbers. The kind of processor does, too."""
        flash = "own" if self.own_attention else self.flash_attention
        return f"{self.kv_type_k}-{self.kv_type_v}-flash-{flash}"


class Context:
    """Owned by the engine thread: nothing here may be called from two threads."""

    def __init__(self, model: Model, options: ContextOptions) -> None:
        """Allocate the KV pool. Raises StartError when llama.cpp can't."""
        self.options = options
        self.vocab_size = model.vocab.size
        self.hidden_size = model.hidden_size
        self.num_seqs = options.num_seqs
        self.n_threads = options.n_threads
        # Ours don't wait for a thread that another process has pushed aside; llama.cpp's do.
        self._few_rows = 0
        if model.all_packed and options.own_attention:
            self._few_rows = _ALONE // options.n_threads**2
            kernels.set_own_threads(options.n_threads)
        self.pointer = _create(model, options)
        self.num_cells = int(llama_cpp.llama_n_ctx(self.pointer))
        # Where positions are learned, llama.cpp ends the process over one that the model lacks.
        self.num_positions = min(self.num_cells, model.context_size)
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self._gives_embeddings = False

    @property
    def own_threads(self) -> bool:
        """Whether decodes of few rows use the threads of our own kernels."""
        return self._few_rows > 0

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self.pointer)

    def decode(self, batch: LlamaBatch) -> None:
        """Run the rows of `batch`. Raises EngineError when llama.cpp can't."""
        batch.seal()
        if self._few_rows:
            n_threads = 1 if batch.num_rows <= self._few_rows else self.n_threads
            llama_cpp.llama_set_n_threads(self.pointer, n_threads, n_threads)
        code = llama_cpp.llama_decode(self.pointer, batch.struct)
        if code:
            reason = backend.last_error()
            backend.clear_errors()  # the next failure has a reason of its own
            raise EngineError(f"llama_decode of {batch.num_rows} rows ended with {code}: {reason}")

    @property
    def is_causal(self) -> bool:
        """Whether rows see those before them, as KV, and none behind them."""
        return bool(self._memory) and bool(llama_cpp.llama_get_causal_attn(self.pointer))

    @property
    def num_graphs_reused(self) -> int:
        """Decodes so far that llama.cpp computed with the graph of the one before."""
        return int(llama_cpp.llama_perf_context(self.pointer).n_reused)

    def logits(self, num_outputs: int) -> NDArray[np.float32]:
        """Logits of the last decode's output rows, (num_outputs, vocabulary). A view: copy to keep.

        llama.cpp overwrites it with the next decode.
        """
        return _rows(llama_cpp.llama_get_logits(self.pointer), num_outputs, self.vocab_size)

    def set_embeddings(self, wanted: bool) -> None:
        """Whether decodes also give the state behind every row, which must then be an output."""
        if wanted != self._gives_embeddings:
            llama_cpp.llama_set_embeddings(self.pointer, wanted)
            self._gives_embeddings = wanted

    def hidden(self, num_outputs: int) -> NDArray[np.float32]:
        """State after the final norm, (num_outputs, hidden size), of a decode with embeddings on.

        A view: copy to keep. llama.cpp overwrites it with the next decode.
        """
        return _rows(llama_cpp.llama_get_embeddings(self.pointer), num_outputs, self.hidden_size)

    def synchronize(self) -> None:
        """Wait until the last decode is over, for honest timing."""
        llama_cpp.llama_synchronize(self.pointer)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions start..end-1. Metadata only."""
        _seq_cp(self._memory, source, target, start, end)

    def remove(self, seq: int, start: int, end: int = -1) -> None:
        """Take positions start..end-1 (-1: to the end) from a sequence."""
        _seq_rm(self._memory, seq, start, end)

    def double(self, seq: int, spare: int) -> None:
        """Let a sequence hold another copy of its cells, as they are, in place of computed ones.

        `spare`: an empty sequence. Raises EngineError when there is no room.
        """
        size = llama_cpp.llama_state_seq_get_size(self.pointer, seq)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.pointer, state, size, seq)
        if not llama_cpp.llama_state_seq_set_data(self.pointer, state, size, spare):
            raise EngineError(f"the KV pool of {self.num_cells} cells has no room for a copy")
        self.copy(spare, seq, 0, -1)
        self.remove(spare, 0)

    def clear(self, *, data: bool = False) -> None:
        """Empty the KV pool, and with `data` the cells themselves: what is no number spreads from
        cells that nobody holds.
        """
        llama_cpp.llama_memory_clear(self._memory, data)

    def prove(self) -> None:
        """Empty the pool and decode a few rows of no request. Raises EngineError where that fails:
        then no request is to blame.
        """
        self.clear(data=True)
        batch = LlamaBatch(_PROVEN_ROWS)
        for position in range(_PROVEN_ROWS):
            batch.add(position % self.vocab_size, position, [0], output=True)
        self.set_embeddings(False)
        self.decode(batch)
        logits = self.logits(_PROVEN_ROWS)
        if not is_finite(logits):
            raise LogitsError
        if not np.ptp(logits, axis=1).any():  # llama.cpp leaves zeros where a model has none
            raise EngineError("it gives no logits")
        self.clear()

    def length(self, seq: int) -> int:
        """Positions that a sequence holds, 0 when it is empty."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, seq)) + 1


def _rows(pointer: Any, num_rows: int, num_columns: int) -> NDArray[np.float32]:
    if not pointer:
        raise EngineError("llama.cpp gave no outputs")
    return _view(ctypes.addressof(pointer.contents), num_rows, num_columns)


@lru_cache(maxsize=256)  # llama.cpp mostly writes to where it wrote before
def _view(address: int, num_rows: int, num_columns: int) -> NDArray[np.float32]:
    values = (ctypes.c_float * num_columns * num_rows).from_address(address)
    return np.ctypeslib.as_array(values)


def _create(model: Model, options: ContextOptions) -> llama_cpp.llama_context_p:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-options.num_cells // _CELL_BLOCK) * _CELL_BLOCK
    params.n_batch = params.n_ubatch = MAX_BATCH_ROWS
    params.n_seq_max = options.num_seqs
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = _KV_TYPES[options.kv_type_k]
    params.type_v = _KV_TYPES[options.kv_type_v]
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    params.kv_unified = options.unified
    params.pooling_type = _NO_POOLING
    params.no_perf = True
    backend.clear_errors()
    pointer: llama_cpp.llama_context_p | None
    pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise StartError(
            f"no context of KV_CACHE_TOKENS={options.num_cells} can be made: {backend.last_error()}"
        )
    return pointer
