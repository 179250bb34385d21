from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from model_server.errors import ModelFileError
from model_server.llama.model import Model
from tests import gguf_file, twin


def patched(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy of a file with its first `old` replaced, its length kept."""
    raw = source.read_bytes()
    assert old in raw
    assert len(old) == len(new)
    target.write_bytes(raw.replace(old, new, 1))
    return target


def with_block_count(source: Path, target: Path, count: int) -> Path:
    key = b"llama.block_count" + struct.pack("<I", 4)
    layers = twin.TINY.num_layers
    return patched(source, target, key + struct.pack("<I", layers), key + struct.pack("<I", count))


def test_a_file_is_described(model: Model) -> None:
    assert model.name == twin.TINY.name
    assert model.architecture == "llama"
    assert model.context_size == twin.TINY.context
    assert model.hidden_size == twin.TINY.hidden
    assert model.chat_template is None
    assert not model.uses_gpu


def test_loading_is_heard(twin_path: Path) -> None:
    heard: list[float] = []
    Model(twin_path, 0, heard.append).close()
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_loading_can_be_stopped(twin_path: Path) -> None:
    heard: list[float] = []

    def stop(fraction: float) -> bool:
        heard.append(fraction)
        return False

    with pytest.raises(ModelFileError, match="can't be loaded"):
        Model(twin_path, 0, stop)
    assert len(heard) == 1


def test_a_files_name_may_hold_any_bytes(random_model_path: Path, tmp_path: Path) -> None:
    """Those of another encoding than UTF-8; the model's own name is text."""
    raw = random_model_path.read_bytes()
    nameless = tmp_path / os.fsdecode(b"mod\xe8le.gguf")
    nameless.write_bytes(raw.replace(b"general.name", b"general.none"))
    loaded = Model(nameless, 0)
    assert loaded.name == "mod\ufffdle"
    assert loaded.open_header().string("general.none")
    loaded.close()


def test_weights_tell_files_apart_and_names_do_not(
    twin_path: Path, twin_q8_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other.gguf"
    copy.write_bytes(twin_path.read_bytes())
    prints = []
    for path in (twin_path, copy, twin_q8_path):
        loaded = Model(path, 0)
        prints.append(loaded.fingerprint)
        loaded.close()
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("size", [0, 3, 4, 24, 1_000, 20_000, 500_000])
def test_truncated_files_are_refused(twin_path: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(twin_path.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        Model(path, 0)


@pytest.mark.parametrize("content", [b"hello" * 1_000, b"GGUF" + b"\xff" * 1_000, b"GGUF" * 9])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a readable GGUF"):
        Model(path, 0)


@pytest.mark.parametrize("count", [0, 513, 600, 2**32 - 1])
def test_layers_that_end_the_process_are_refused(
    twin_path: Path, tmp_path: Path, count: int
) -> None:
    path = with_block_count(twin_path, tmp_path / "layers.gguf", count)
    with pytest.raises(ModelFileError, match=f"block_count is {count}"):
        Model(path, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_layers_that_do_not_fit_the_tensors_are_refused(
    twin_path: Path, tmp_path: Path, count: int
) -> None:
    path = with_block_count(twin_path, tmp_path / "layers.gguf", count)
    with pytest.raises(ModelFileError, match="can't be loaded"):
        Model(path, 0)


def test_another_architecture_is_refused(twin_path: Path, tmp_path: Path) -> None:
    name = struct.pack("<Q", 5) + b"llama"
    path = patched(twin_path, tmp_path / "bert.gguf", name, struct.pack("<Q", 5) + b"mamba")
    with pytest.raises(ModelFileError):
        Model(path, 0)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        Model(tmp_path, 0)


def test_a_files_own_defaults_of_sampling_have_our_names(tmp_path: Path, model: Model) -> None:
    said = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "penalty_repeat": 1.05}
    tensors = twin.tensors(twin.TINY, "F32")
    path = gguf_file.write(tmp_path / "a.gguf", twin.TINY, "F32", tensors, said)
    loaded = Model(path, 0)
    assert loaded.sampling == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.0,
        "repeat_penalty": 1.05,
    }
    loaded.close()
    assert model.sampling == {}
