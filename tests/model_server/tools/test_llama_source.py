from __future__ import annotations

from pathlib import Path

import pytest

from model_server.errors import ConverterError
from model_server.tools import llama_source
from tests.model_server.tools.folders import stand_in_cache

FILES = {"convert.py": "c", "gguf-py/gguf/a.py": "a", "ggml/big.c": "b"}


def test_only_the_wanted_parts_are_unpacked(tmp_path: Path) -> None:
    cache = stand_in_cache(tmp_path / "cache", FILES)
    target = cache / "source"
    assert llama_source.unpacked(target, ("convert.py", "gguf-py/"), cache) == target
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"convert.py", "gguf-py/gguf/a.py"}
    assert (target / "gguf-py" / "gguf" / "a.py").read_text() == "a"


def test_what_is_unpacked_stays(tmp_path: Path) -> None:
    cache = stand_in_cache(tmp_path / "cache", FILES)
    source = llama_source.unpacked(cache / "source", cache=cache)
    llama_source.archive(cache).unlink()
    assert llama_source.unpacked(cache / "source", cache=cache) == source
    assert (source / "ggml" / "big.c").read_text() == "b"


def test_a_rerun_starts_clean(tmp_path: Path) -> None:
    cache = stand_in_cache(tmp_path / "cache", FILES)
    (cache / "source.part" / "left").mkdir(parents=True)
    assert not (llama_source.unpacked(cache / "source", cache=cache) / "left").exists()


def test_an_archive_cut_off_is_refused(tmp_path: Path) -> None:
    archive = llama_source.archive(stand_in_cache(tmp_path / "cache", FILES))
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(ConverterError, match=r"tar\.gz: damaged"):
        llama_source.unpacked(archive.parent / "source", cache=archive.parent)
    assert not (archive.parent / "source").exists()


def test_without_a_network_it_says_what_is_needed(
    tmp_path: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{llama_source.requirement().replace('-', '_').replace('==', '-')}.tar.gz"
    with pytest.raises(ConverterError, match=f"put {name}, its source archive on PyPI, into"):
        llama_source.archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pip.log"]
    assert "Downloading" in capsys.readouterr().out
