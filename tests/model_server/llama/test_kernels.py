"""Which weights of a file go to our own kernels."""

from __future__ import annotations

from model_server.llama import kernels
from model_server.llama.gguf import GgufHeader, StoredTensor
from tests.models import STDLIB


def stored() -> dict[str, StoredTensor]:
    header = GgufHeader(STDLIB)
    tensors = header.tensors
    header.close()
    return tensors


def test_weights_that_are_multiplied_are_packed() -> None:
    assert kernels.packed_weights(stored()) == [
        *(f"blk.*.attn_{name}.weight" for name in ("k", "output", "q", "v")),
        *(f"blk.*.ffn_{name}.weight" for name in ("down", "gate", "up")),
        "output.weight",
    ]


def test_an_embedding_is_packed_where_it_is_the_outputs_matrix_too() -> None:
    tensors = stored()
    del tensors["output.weight"]
    assert "token_embd.weight" in kernels.packed_weights(tensors)


def test_a_kind_of_weight_is_packed_in_all_layers_or_in_none() -> None:
    tensors = stored()
    odd = tensors["blk.1.attn_q.weight"]
    tensors["blk.1.attn_q.weight"] = type(odd)(**{**vars(odd), "type": 3000})
    packed = kernels.packed_weights(tensors)
    assert "blk.*.attn_q.weight" not in packed
    assert "blk.*.attn_k.weight" in packed


def test_what_other_operations_use_stays() -> None:
    tensors = {"position_embd.weight": stored()["output.weight"]}
    assert kernels.packed_weights(tensors) == []


def test_whether_no_product_is_left_to_llama_cpp() -> None:
    tensors = stored()
    assert kernels.are_all(kernels.packed_weights(tensors), tensors)
    tensors["blk.0.ffn_gate_exps.weight"] = tensors["blk.0.ffn_gate.weight"]
    assert not kernels.are_all(kernels.packed_weights(tensors), tensors)
