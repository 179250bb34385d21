from __future__ import annotations

from pathlib import Path

import pytest

from model_server.llama.ggml import GgufHeader, fingerprint
from tests import twin


def test_values_are_read_by_key_and_type(twin_path: Path) -> None:
    header = GgufHeader(twin_path)
    assert header.integer("llama.block_count") == twin.TINY.num_layers
    assert header.string("general.architecture") == "llama"
    assert header.integer("general.architecture") is None
    assert header.string("llama.block_count") is None
    assert header.string("no.such.key") is None
    assert 0 < header.data_offset < twin_path.stat().st_size
    header.close()


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_file_has_no_header(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="GGUF"):
        GgufHeader(tmp_path / name)


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
