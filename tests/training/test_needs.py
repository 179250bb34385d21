from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from model_server.errors import NoSpaceError
from model_server.tools import convert_heads, options
from model_server.tools.progress import in_words
from model_server.training import __main__ as training
from model_server.training import needs, sources
from tests.training.commands import prompts

heads = pytest.importorskip(
    "model_server.training.heads",
    exc_type=ImportError,
    reason="PyTorch is not installed: `make test-training` does",
)

Capsys = pytest.CaptureFixture[str]


def refused(capsys: Capsys, *given: object) -> str:
    """The one sentence, before anything was collected."""
    assert training.main([str(part) for part in given]) == 1
    [said] = capsys.readouterr().err.splitlines()
    return str(said)


def test_what_would_fail_in_the_end_fails_at_once(
    twin_path: Path,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, many = tmp_path / "heads.gguf", prompts(tmp_path / "many", 40)
    none = tmp_path / "none.gguf"
    assert refused(capsys, none, out, "--prompts", many) == f"{none}: no such file"
    own = refused(capsys, twin_path, twin_path, "--prompts", many)
    assert own == f"{twin_path}: is what it would be made from: choose another name to write to"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refused(capsys, twin_path, folder) == f"{folder}: is a folder, must be a file to write"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(capsys, twin_path, out, "--prompts", many)
    assert said == "PyTorch is missing: `make heads` installs it"
    assert not Path(f"{out}.training").exists()


def test_a_seed_that_pytorch_can_not_take_is_refused_at_once(capsys: Capsys) -> None:
    with pytest.raises(SystemExit):
        options.heads(["base.gguf", "heads.gguf", "--seed", str(2**32)])
    assert "from 0 to 4294967295, not 4294967296" in capsys.readouterr().err


def test_what_it_takes_is_said(twin_path: Path, tmp_path: Path, capsys: Capsys) -> None:
    """For each weight 4 bytes 6 times in memory, 8 times on the disk; and the base's output and
    embedding.
    """
    args = options.heads([str(twin_path), str(tmp_path / "h"), "--heads", "2", "--blocks", "2"])
    base = convert_heads.read_base(twin_path)
    hidden, vocab = base.hidden_size, base.vocab_size
    shape = heads.HeadShape(2, 2)
    made = heads.MedusaHeads(shape, heads.base_matrices(twin_path).output)
    weights = sum(parameter.numel() for parameter in made.parameters())
    assert weights == 2 * (hidden**2 + 2 * hidden * (hidden + 1) + vocab * hidden)
    assert needs.num_weights(args, base) == weights
    needs.check(args)
    said = capsys.readouterr().out
    assert f"{in_words(weights * 24 + 2 * vocab * hidden * 4)} of memory" in said
    assert f"{in_words(weights * 32)} in {tmp_path / 'h'}.training" in said


def test_a_disk_with_too_little_room_is_refused(twin_path: Path, tmp_path: Path) -> None:
    args = options.heads([str(twin_path), str(tmp_path / "heads.gguf")])
    needs.check_space(args, [])
    total = shutil.disk_usage(tmp_path).total
    vast = [sources.Source(range(total), "a", answered=False)]
    with pytest.raises(NoSpaceError, match=r"heads.gguf.training: .* are needed"):
        needs.check_space(args, vast)
