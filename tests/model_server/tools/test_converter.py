from __future__ import annotations

from pathlib import Path

import pytest

from model_server.errors import ConverterError
from model_server.tools import converter, progress
from model_server.tools.converter import Converter
from tests.model_server.tools.folders import stand_in_cache
from tests.structure.modules import ROOT


def test_what_the_converter_has_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", -1)
    lines = ["Loading model", *(f"Writing: {n:3d}%|##" for n in range(101)), "done"]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    python.chmod(0o755)
    Converter(python, tmp_path, tmp_path / "log").run(tmp_path, tmp_path / "out.gguf", "F16")
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"  writing: {n}%" for n in range(0, 101, 10)]


def test_pytorch_is_the_one_that_training_uses() -> None:
    assert converter.TORCH in (ROOT / "requirements" / "train.in").read_text().splitlines()


def test_the_converters_own_pins_are_kept(tmp_path: Path) -> None:
    text = "# why\n-r ./b.txt\n--extra-index-url https://x\n\ntorch==1.0\nprotobuf >=4, <5\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("numpy~=2.2.6\n")
    found = list(converter._required(tmp_path / "a.txt"))
    assert found == ["numpy~=2.2.6", "protobuf>=4,<5"]


def test_without_a_network_it_says_how_to_make_the_venv(
    tmp_path: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = stand_in_cache(tmp_path / "cache")
    wanted = f"`pip install transformers==4.57.6 {converter.TORCH}` where there is a network"
    with pytest.raises(ConverterError, match=wanted):
        converter.ready(cache)
    assert "Installing PyTorch" in capsys.readouterr().out
    venv = cache / "convert-base" / "venv"
    assert (venv / "bin" / "python").exists()
    assert not (venv / ".ready").exists()


def test_a_venv_that_is_ready_is_used_again(tmp_path: Path) -> None:
    cache = stand_in_cache(tmp_path / "cache")
    venv = cache / "convert-base" / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (venv / ".ready").write_text(f"transformers==4.57.6\n{converter.TORCH}")
    assert converter.ready(cache).python == venv / "bin" / "python"
