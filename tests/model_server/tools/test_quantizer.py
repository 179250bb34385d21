from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from model_server.errors import CheckpointError
from model_server.llama import ggml
from model_server.llama.gguf import GgufHeader, base_fingerprint
from model_server.tools import quantizer
from model_server.tools.weight_types import QUANTIZED
from tests import random_heads, twin
from tests.random_heads import Kind
from tests.reference import Reference


def header_of(path: Path) -> tuple[set[str], str]:
    """Types of its tensors, and which base it is."""
    header = GgufHeader(path)
    types = {ggml.type_name(tensor.type) for tensor in header.tensors.values()}
    fingerprint = base_fingerprint(header)
    header.close()
    return types, fingerprint


@pytest.mark.parametrize(
    ("type_", "own"), [("Q4_0", "Q4_0"), ("Q4_K_M", "Q4_K"), ("Q8_0", "Q8_0"), ("F16", "F16")]
)
@pytest.mark.parametrize("source", ["twin_path", "twin_q8_path"])
def test_the_answers_stay_and_heads_still_fit(
    source: str, type_: str, own: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(source)
    made = tmp_path / "made.gguf"
    heard: list[int] = []
    quantizer.quantize(path, made, type_, heard.append)
    types, fingerprint = header_of(made)
    assert own in types
    assert fingerprint == header_of(path)[1]
    tokens = list(range(twin.TINY.vocab_size))
    with Reference(made) as model:
        measured = model.logits(tokens)
    np.testing.assert_array_equal(measured.argmax(axis=1), twin.successors(twin.TINY)[0])
    assert heard == list(range(quantizer.read(path).num_tensors))
    assert list(tmp_path.iterdir()) == [made]


@pytest.mark.parametrize("type_", QUANTIZED)
def test_every_type_can_be_made(type_: str, random_model_path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    quantizer.quantize(random_model_path, made, type_, lambda _: None)
    weights = quantizer.read(made)
    assert weights.count == quantizer.read(random_model_path).count
    assert weights.rounded == (type_ not in ("F16", "BF16"))
    expected = quantizer.expected_bytes(weights.count, type_)
    assert made.stat().st_size == pytest.approx(expected, rel=0.35)  # a small model keeps more


def test_names_of_files_may_hold_any_bytes(random_model_path: Path, tmp_path: Path) -> None:
    """Those of another encoding than UTF-8."""
    source, made = (tmp_path / os.fsdecode(name) for name in (b"mod\xe8le", b"\xe9tat"))
    source.symlink_to(random_model_path)
    quantizer.quantize(source, made, "Q8_0", lambda _: None)
    assert quantizer.read(made).type == "Q8_0"


def test_what_a_file_holds(twin_path: Path, twin_q8_path: Path) -> None:
    assert (quantizer.read(twin_path).type, quantizer.read(twin_path).rounded) == ("F32", False)
    weights = quantizer.read(twin_q8_path)
    assert (weights.type, weights.rounded) == ("Q8_0", True)
    assert weights.count == quantizer.read(twin_path).count


def test_llama_cpps_refusal_is_passed_on(tmp_path: Path) -> None:
    heads = random_heads.write(tmp_path / "heads.gguf", Kind())
    with pytest.raises(CheckpointError, match=r"can't be quantized to Q4_0: .*unknown model arch"):
        quantizer.quantize(heads, tmp_path / "made.gguf", "Q4_0", lambda _: None)
    assert list(tmp_path.iterdir()) == [heads]


def test_a_target_that_cannot_be_written_is_named(twin_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        quantizer.quantize(twin_path, tmp_path / "file" / "m.gguf", "Q4_0", lambda _: None)
