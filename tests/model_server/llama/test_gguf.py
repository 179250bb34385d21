from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from model_server.errors import ModelFileError
from model_server.llama.gguf import GgufHeader, base_fingerprint, fingerprint
from model_server.llama.model import Model
from tests import gguf_file, random_model, twin, vocabulary


def base_fingerprint_of(path: Path) -> str:
    header = GgufHeader(path)
    try:
        return base_fingerprint(header)
    finally:
        header.close()


def test_values_are_read_by_key_and_type(twin_path: Path) -> None:
    header = GgufHeader(twin_path)
    assert header.integer("llama.block_count") == twin.TINY.num_layers
    assert header.string("general.architecture") == "llama"
    assert header.boolean("tokenizer.ggml.add_bos_token") is True
    assert header.boolean("tokenizer.ggml.add_eos_token") is False
    assert header.integer("general.architecture") is None
    assert header.boolean("llama.block_count") is None
    assert header.string("llama.block_count") is None
    assert header.string("no.such.key") is None
    assert 0 < header.data_offset < twin_path.stat().st_size
    header.close()


def test_arrays_of_strings_are_read(twin_path: Path) -> None:
    header = GgufHeader(twin_path)
    expected = [piece.encode() for piece in vocabulary.pieces(twin.TINY.vocab_size)]
    assert header.strings("tokenizer.ggml.tokens") == expected
    assert header.strings("tokenizer.ggml.scores") is None
    assert header.strings("general.name") is None
    header.close()


def test_tensors_are_described_as_another_reader_finds_them(twin_q8_path: Path) -> None:
    header = GgufHeader(twin_q8_path)
    expected = {tensor.name: tensor for tensor in GGUFReader(twin_q8_path).tensors}
    assert header.tensors.keys() == expected.keys()
    for name, tensor in header.tensors.items():
        other = expected[name]
        assert tensor.shape == tuple(reversed(other.shape.tolist()))
        assert (tensor.type, tensor.num_bytes) == (other.tensor_type, other.n_bytes)
        assert tensor.rows().tobytes() == other.data.tobytes()
    header.close()


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_file_has_no_header(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="GGUF"):
        GgufHeader(tmp_path / name)


def test_a_file_that_ends_before_its_tensors_is_refused(twin_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    header = GgufHeader(twin_path)
    last = max(header.tensors.values(), key=lambda tensor: tensor.offset)
    header.close()
    end = last.offset + last.num_bytes
    cut.write_bytes(twin_path.read_bytes()[:end])
    GgufHeader(cut).close()
    cut.write_bytes(twin_path.read_bytes()[: end - 1])
    with pytest.raises(ValueError, match=f"cut off: {last.name} ends at byte {end}, the file at"):
        GgufHeader(cut)
    with pytest.raises(ModelFileError, match=r"cut\.gguf: cut off"):
        Model(cut, 0)


@pytest.mark.parametrize("num_values", [0, 4_099_276_460_824_344_832])
def test_a_tensor_whose_size_wraps_is_refused(num_values: int, tmp_path: Path) -> None:
    """ggml computes 16 bytes for the larger number of Q4_0's values."""
    path = tmp_path / "wraps.gguf"
    name, q4_0 = b"a", 2
    tensor = struct.pack("<Q1sIQIQ", len(name), name, 1, num_values, q4_0, 0)
    path.write_bytes((b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor).ljust(128, b"\0"))
    with pytest.raises(ValueError, match=f"a states {num_values} values in (0|16) bytes"):
        GgufHeader(path)


@pytest.mark.parametrize("at", [0, 99, 100, 100_000, 1_999_999])
def test_the_fingerprint_sees_the_header_and_spread_blocks(tmp_path: Path, at: int) -> None:
    path = tmp_path / "file"
    raw = bytearray(2_000_000)
    path.write_bytes(raw)
    before = fingerprint(path, 100)
    raw[at] ^= 1
    path.write_bytes(raw)
    assert fingerprint(path, 100) != before


def test_the_fingerprint_sees_the_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000))
    before = fingerprint(path, 100)
    path.write_bytes(bytes(1_001))
    assert fingerprint(path, 100) != before


def test_all_quantizations_of_a_base_have_one_fingerprint(
    twin_path: Path, tmp_path: Path, model: Model
) -> None:
    prints = {base_fingerprint_of(twin_path), model.base_fingerprint}
    for file_type in ("F16", "Q8_0", "Q4_0", "Q4_K"):
        prints.add(base_fingerprint_of(twin.write(tmp_path / "t.gguf", file_type=file_type)))
    assert len(prints) == 1
    assert len(prints.pop()) == 64


def test_another_vocabulary_or_other_norms_are_another_base(
    twin_path: Path, random_model_path: Path, tmp_path: Path
) -> None:
    shape = random_model.SHAPE
    prints = [base_fingerprint_of(twin_path), base_fingerprint_of(random_model_path)]
    fewer = replace(shape, vocab_size=508)
    prints.append(base_fingerprint_of(random_model.write(tmp_path / "f.gguf", shape=fewer)))
    louder = (
        replace(tensor, rows=[rows * np.float32(2) for rows in tensor.rows])
        if tensor.name == "blk.1.attn_norm.weight"
        else tensor
        for tensor in random_model.tensors(shape, "F32", seed=0)
    )
    path = gguf_file.write(tmp_path / "louder.gguf", shape, "F32", louder)
    prints.append(base_fingerprint_of(path))
    assert all(one != other for one, other in pairwise(sorted(prints)))


def test_a_file_without_norms_has_no_base_fingerprint(tmp_path: Path) -> None:
    shape = random_model.SHAPE
    bare = (t for t in random_model.tensors(shape, "F32", 0) if not t.name.endswith("norm.weight"))
    path = gguf_file.write(tmp_path / "bare.gguf", shape, "F32", bare)
    with pytest.raises(ValueError, match="no fingerprint"):
        base_fingerprint_of(path)


def test_numbers_of_samplers_are_read_whatever_their_type(tmp_path: Path) -> None:
    said = {"temp": 0.6, "top_k": 20, "top_p": 0.95}
    path = gguf_file.write(
        tmp_path / "a.gguf", twin.TINY, "F32", twin.tensors(twin.TINY, "F32"), said
    )
    header = GgufHeader(path)
    assert header.number("general.sampling.top_k") == 20
    assert header.number("general.sampling.temp") == pytest.approx(0.6)
    assert header.number("general.sampling.min_p") is None
    header.close()
