"""A model that is split over several files is one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_server.errors import ModelFileError
from model_server.llama.gguf import GgufHeader
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.tools import convert_heads
from tests import checkpoints, gguf_file
from tests.checkpoints import Weights

COUNT = 3


@pytest.fixture
def first(random_q8_path: Path, tmp_path: Path) -> Path:
    return gguf_file.split(random_q8_path, tmp_path, COUNT)


def test_it_has_the_tensors_and_the_fingerprint_of_the_whole(
    first: Path, random_q8_path: Path
) -> None:
    whole, parts = GgufHeader(random_q8_path), GgufHeader(first)
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, tensor in parts.tensors.items():
        assert tensor.rows().tobytes() == whole.tensors[name].rows().tobytes()
    assert len({tensor.path for tensor in parts.tensors.values()}) == COUNT
    whole.close()
    parts.close()
    model, split = Model(random_q8_path, 0), Model(first, 0)
    assert split.base_fingerprint == model.base_fingerprint
    split.close()
    model.close()


def test_every_part_counts_for_its_own_fingerprint(first: Path) -> None:
    found = set()
    for number in range(1, COUNT + 1):
        model = Model(first, 0)
        found.add(model.fingerprint)
        model.close()
        part = first.with_name(first.name.replace("-00001-", f"-{number:05}-"))
        raw = bytearray(part.read_bytes())
        raw[-40] ^= 1
        part.write_bytes(raw)
    assert len(found) == COUNT


def test_shared_heads_take_the_output_matrix_wherever_it_lies(first: Path, tmp_path: Path) -> None:
    header = GgufHeader(first)
    assert header.tensors["output.weight"].path != first
    header.close()
    weights = Weights.random(2, 1, shared=True)
    source = checkpoints.write_pt(tmp_path / "heads.pt", dict(checkpoints.original(weights)))
    target = tmp_path / "heads.gguf"
    assert convert_heads.main([str(source), str(target), "--base", str(first)]) == 0
    base = Model(first, 0)
    assert [each.name for each in head_file.read(target, base).outputs] == ["output.weight"]
    base.close()


def test_a_missing_part_is_named(first: Path) -> None:
    first.with_name(first.name.replace("-00001-", "-00002-")).unlink()
    with pytest.raises(
        ModelFileError, match=r"one of 3 files, and .*-00002-of-00003\.gguf is missing"
    ):
        Model(first, 0)


def test_the_first_part_stands_for_all(first: Path) -> None:
    second = first.with_name(first.name.replace("-00001-", "-00002-"))
    with pytest.raises(ModelFileError, match=rf"one of 3 files: name the first, {first.name}$"):
        Model(second, 0)


def test_another_name_is_refused(first: Path) -> None:
    other = first.rename(first.with_name("model.gguf"))
    with pytest.raises(ModelFileError, match="must be named NAME-00001-of-00003"):
        Model(other, 0)
