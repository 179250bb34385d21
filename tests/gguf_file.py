"""Writes Llama-architecture GGUF files tensor by tensor, so that a 7B file needs little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from model_server.tools.gguf_writer import (
    Floats,
    OutputTensor,
    encode,
    floats,
    whole,
    write_tensors,
)
from tests import vocabulary

RMS_EPS = 1e-6
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model. No grouped-query attention where num_kv_heads equals num_heads."""

    name: str
    vocab_size: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ff: int
    context: int
    top_logit: float = 16.0  # of a known-answer model's best successor

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads

    def layer_tensors(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each matrix of a layer, by its GGUF name."""
        kv = self.num_kv_heads * self.head_dim
        return {
            "attn_q": (self.hidden, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, self.hidden),
            "ffn_gate": (self.ff, self.hidden),
            "ffn_up": (self.ff, self.hidden),
            "ffn_down": (self.hidden, self.ff),
        }


def matrix_types(name: str) -> tuple[Type, Type, Type]:
    """Types of the embedding, the layers and the output matrix, as quantized files have them.

    Embeddings of 4-bit files stay Q8_0 here: a sign vector is exact in it, and it costs no time.
    """
    layers = Type[name]
    if layers in (Type.Q4_0, Type.Q4_K):
        return Type.Q8_0, layers, Type.Q6_K
    return layers, layers, layers


def matrix(name: str, rows: Floats, type_: Type) -> OutputTensor:
    """A matrix that is at hand as a whole."""
    return OutputTensor(f"{name}.weight", rows.shape, type_, [encode(rows, type_)])


def norms(shape: Shape, output_scale: float = 1.0) -> Iterator[OutputTensor]:
    """All normalisation weights: ones, apart from the last."""
    ones = np.ones(shape.hidden, dtype=np.float32)
    yield floats("output_norm.weight", ones * np.float32(output_scale))
    for layer in range(shape.num_layers):
        for part in ("attn_norm", "ffn_norm"):
            yield floats(f"blk.{layer}.{part}.weight", ones)


def write(
    path: Path,
    shape: Shape,
    file_type: str,
    tensors: Iterable[OutputTensor],
    sampling: Mapping[str, float] | None = None,
    architecture: str = "llama",
    also: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write the file: metadata, tokenizer, then the tensors one by one.

    `sampling`: what the file says about it, by llama.cpp's names. `also` writes more metadata, as
    other architectures have.
    """
    with whole(path) as part:
        writer = gguf.GGUFWriter(part, architecture)
        _add_metadata(writer, shape, file_type)
        also(writer)
        for name, value in (sampling or {}).items():
            if isinstance(value, int):
                writer.add_int32(f"general.sampling.{name}", value)
            else:
                writer.add_float32(f"general.sampling.{name}", value)
        _add_tokenizer(writer, shape.vocab_size)
        write_tensors(writer, tensors)
    return path


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, file_type: str) -> None:
    writer.add_name(shape.name)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(RMS_EPS)


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.pieces(size))
    writer.add_token_scores(vocabulary.scores(size))
    writer.add_token_types(vocabulary.token_types(size))
    writer.add_unk_token_id(vocabulary.UNK)
    writer.add_bos_token_id(vocabulary.BOS)
    writer.add_eos_token_id(vocabulary.EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def with_infill(path: Path, target: Path, **tokens: int) -> Path:
    """The same model with tokens for filling gaps: pre, suf, mid, and perhaps rep, sep."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    _copy_metadata(reader, writer)
    for name, token in tokens.items():
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)


def split(path: Path, folder: Path, count: int) -> Path:
    """The same model in so many files, as llama.cpp splits it; the first of them."""
    reader = gguf.GGUFReader(path)
    name = f"{path.stem}-{{:05}}-of-{count:05}.gguf"
    for number in range(count):
        shard = folder / name.format(number + 1)
        writer = gguf.GGUFWriter(shard, "llama")
        if number == 0:
            _copy_metadata(reader, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / name.format(1)
