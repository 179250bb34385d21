"""Writing the model as a GGUF file of the `llama` architecture: matrices Q8_0, norms F32."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from tokenizers import Tokenizer
from torch import Tensor

from model_server.training.demo.model import Model, Shape
from model_server.training.demo.tokenizer import BOS_ID, EOS_ID

NAME = "stdlib-demo"
LICENSE = "PSF-2.0"
# A model that completes code has no roles: the messages are the lines before its answer.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
TENSORS = {
    "attn_norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.output": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def export(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer, model.shape)
    add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        add_tensor(writer, gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """`layers.3.attn.q.weight` is `blk.3.attn_q.weight`; what is outside a layer keeps its name."""
    if not name.startswith("layers."):
        return name
    _, layer, inner = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{TENSORS[inner]}.weight"


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
    array = tensor.float().numpy()
    if array.ndim == 1:
        writer.add_tensor(name, array)
    else:
        blocks = gguf.quants.quantize(array, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(NAME)
    writer.add_license(LICENSE)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocab = tokenizer.get_vocab()
    types = [TokenType.NORMAL] * len(vocab)
    types[BOS_ID] = types[EOS_ID] = TokenType.CONTROL
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
