"""A GGUF file, checked and loaded."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp

from model_server.errors import ModelFileError, SettingError
from model_server.llama import backend, gguf, kernels
from model_server.llama.gguf import GgufHeader, StoredTensor, base_fingerprint, model_fingerprint
from model_server.llama.vocab import Vocab

_MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS: it ends the process outside of 1..512

# What a file may say about sampling, by llama.cpp's names and by ours.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}

LoadProgress = Callable[[float], bool | None]  # False: stop loading


class Model:
    """The weights and the vocabulary. Frees them on `close`."""

    def __init__(
        self,
        path: Path,
        n_gpu_layers: int,
        progress: LoadProgress = lambda _: None,
        *,
        packed: bool = False,
        weights: bool = True,
    ) -> None:
        """Load `path`, `packed` for our own kernels or not. `progress` hears fractions, 0 to 1.

        Without `weights` all is read and laid out but these, and nothing can be computed.

        Raises ModelFileError; SettingError when layers are for a GPU that this build can't use.
        """
        backend.init()
        if n_gpu_layers and (reason := backend.unusable_gpu()):
            hint = "containers get the NVIDIA driver by --gpus all; 0 serves on the CPU"
            raise SettingError("N_GPU_LAYERS", f"no GPU can be used: {reason}; {hint}")
        self.path = path
        self._read_header(path)
        self.uses_gpu = n_gpu_layers != 0 and backend.has_gpu()
        self._n_gpu_layers = n_gpu_layers
        tensors = self._tensors() if packed else {}
        self.packed = kernels.packed_weights(tensors)
        self.all_packed = packed and kernels.are_all(self.packed, tensors)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if backend.has_gpu() else 0
        if not self.uses_gpu:  # else llama.cpp computes parts of long steps there all the same
            params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, -1
        if not weights:
            params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
        self.pointer = _load(path, params, progress, self.packed)
        try:
            self.vocab = Vocab(llama_cpp.llama_model_get_vocab(self.pointer))
            self._refuse_unservable()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the weights. The contexts made from this model must be closed before."""
        llama_cpp.llama_model_free(self.pointer)

    @property
    def context_size(self) -> int:
        """The context the model was trained for, in tokens."""
        return int(llama_cpp.llama_model_n_ctx_train(self.pointer))

    @property
    def hidden_size(self) -> int:
        """Values of a hidden state."""
        return int(llama_cpp.llama_model_n_embd(self.pointer))

    @property
    def share_on_cpu(self) -> float:
        """Of the layers, whose keys and values are where they are computed; 0 to 1."""
        if not self.uses_gpu or self._n_gpu_layers < 0:
            return 0.0 if self.uses_gpu else 1.0
        num_layers = int(llama_cpp.llama_model_n_layer(self.pointer))
        return max(num_layers - self._n_gpu_layers, 0) / num_layers

    @property
    def is_windowed(self) -> bool:
        """Whether some layers see the last so many tokens only, in a KV cache of their own."""
        return bool(llama_cpp.llama_model_n_swa(self.pointer))

    @property
    def queries_a_kv_head(self) -> int:
        """Heads of attention that share one of keys and values."""
        heads, kv_heads = llama_cpp.llama_model_n_head, llama_cpp.llama_model_n_head_kv
        return int(heads(self.pointer) // max(kv_heads(self.pointer), 1))

    @property
    def kv_values(self) -> int:
        """Keys of one position, over all layers; there are as many values."""
        pointer = self.pointer
        heads = llama_cpp.llama_model_n_head(pointer)
        header = self.open_header()
        width = header.integer(f"{self.architecture}.attention.key_length")
        header.close()
        width = width or self.hidden_size // heads
        layers = llama_cpp.llama_model_n_layer(pointer)
        return int(layers * llama_cpp.llama_model_n_head_kv(pointer) * width)

    @cached_property
    def base_fingerprint(self) -> str:
        """Names the base, the same for all its quantizations. Raises ModelFileError."""
        header = self.open_header()
        try:
            return base_fingerprint(header)
        except ValueError as error:
            raise ModelFileError(str(self.path), str(error)) from None
        finally:
            header.close()

    def open_header(self) -> GgufHeader:
        """The file's metadata; close it after use. Raises ModelFileError."""
        try:
            return GgufHeader(self.path)
        except ValueError as error:
            raise ModelFileError(str(self.path), str(error)) from None

    def _tensors(self) -> Mapping[str, StoredTensor]:
        header = self.open_header()
        tensors = header.tensors
        header.close()
        return tensors

    def _read_header(self, path: Path) -> None:
        if not path.is_file():
            raise ModelFileError(str(path), "no such file")
        header = self.open_header()
        self.architecture = header.string("general.architecture") or "?"
        self.name = header.string("general.name") or gguf.stem(path)
        self.chat_template = header.string("tokenizer.chat_template")
        self.sampling = _sampling(header)
        layers = header.integer(f"{self.architecture}.block_count")
        self.fingerprint = model_fingerprint(header)
        # LongRoPE: in a KV pool of more positions llama.cpp turns all of them otherwise.
        self.short_context: int | None = None
        if "rope_factors_short.weight" in header.tensors:
            original = f"{self.architecture}.rope.scaling.original_context_length"
            self.short_context = header.integer(original)
        epsilon = f"{self.architecture}.attention.layer_norm_rms_epsilon"
        smallest = header.number(epsilon)
        header.close()
        if smallest is not None and not 0 <= smallest < 1:  # llama.cpp ends the process over it
            raise ModelFileError(str(path), f"{epsilon} is {smallest:g}, must be 0 to 1")
        if layers is None or not 1 <= layers <= _MAX_LAYERS:
            problem = f"{self.architecture}.block_count is {layers}, must be 1 to {_MAX_LAYERS}"
            raise ModelFileError(str(path), problem)

    def _refuse_unservable(self) -> None:
        causal = llama_cpp.llama_model_has_decoder(self.pointer) and not (
            llama_cpp.llama_model_has_encoder(self.pointer)
            or llama_cpp.llama_model_is_recurrent(self.pointer)
            or llama_cpp.llama_model_is_hybrid(self.pointer)
            or llama_cpp.llama_model_is_diffusion(self.pointer)
        )
        if not causal or self.vocab.size == 0:
            problem = f"architecture {self.architecture} is not a causal, Llama-like text model"
            raise ModelFileError(str(self.path), problem)
        if lost := next((c for c in map(chr, range(1, 256)) if not self.vocab.spells(c)), None):
            raise ModelFileError(str(self.path), f"its vocabulary has no tokens for {lost!r}")


def _sampling(header: GgufHeader) -> dict[str, float]:
    """The file's own defaults of sampling, by our names: float32 as its authors wrote it."""
    found = {ours: header.number(f"general.sampling.{its}") for its, ours in _SAMPLING.items()}
    return {name: float(f"{value:.6g}") for name, value in found.items() if value is not None}


def _load(
    path: Path,
    params: Any,  # whose pointers' types are not those that it states
    progress: LoadProgress,
    packed: Sequence[str],
) -> llama_cpp.llama_model_p:
    if packed:
        overrides = kernels.overrides(packed)  # llama.cpp reads them until the model is loaded
        address: Any = ctypes.cast(overrides, ctypes.c_void_p)
        params.tensor_buft_overrides = address

    def tell(fraction: float, _user_data: ctypes.c_void_p) -> bool:
        return progress(fraction) is not False

    callback = llama_cpp.llama_progress_callback(tell)
    params.progress_callback = callback
    backend.clear_errors()
    pointer: llama_cpp.llama_model_p | None
    pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not pointer:
        raise ModelFileError(str(path), f"can't be loaded: {backend.last_error()}")
    return pointer
