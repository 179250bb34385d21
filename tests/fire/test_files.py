"""A minute of `python -m tests.fire.files`, and what ended the process before."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_server.errors import StartError
from model_server.llama import trial
from tests.fire import bad_gguf, files
from tests.fire.gguf_layout import U32, Layout
from tests.model_server.test_main import refused

ROOT = Path(__file__).parents[2]
NUMBER = 64
Spoil = Callable[[bytes], bytes]


def twice_the_same_token(raw: bytes) -> bytes:
    first, second = [each for each in Layout(raw).vocabulary if each.size == 3][:2]
    return raw[: second.start] + raw[first.start : first.end] + raw[second.end :]


def experts(raw: bytes) -> bytes:
    """A key that is not needed, made the number of experts, of which none is used."""
    name = b"llama.expert_count"
    key = struct.pack("<Q", len(name)) + name + struct.pack("<II", U32, 8)
    return bad_gguf.with_key(Layout(raw), key)


ENDLESS = b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def endless(raw: bytes) -> bytes:
    return bad_gguf.with_template(Layout(raw), ENDLESS)


def large(raw: bytes) -> bytes:
    """Its template holds 500 MB for as long as it is let."""
    text = b"{% for a in range(50) %}{{ 'a' * (9999999 + a) }}{% endfor %}" + ENDLESS
    return bad_gguf.with_template(Layout(raw), text)


def test_spoiled_files_end_in_a_sentence() -> None:
    """In a process of its own: forks of one whose OpenMP has threads can't compute."""
    command = [sys.executable, "-m", "tests.fire.files", "--number", str(NUMBER)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{NUMBER} files, 0 ended otherwise" in ended.stdout


def test_the_whole_server_ends_in_a_sentence_or_serves() -> None:
    command = [sys.executable, "-m", "tests.fire.whole_files", "--num", "3", "--seed", "9"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 starts, 0 ended otherwise" in ended.stdout
    assert {"refused", "served"} <= set(ended.stdout.split())


@pytest.mark.parametrize(
    ("spoil", "part"),
    [(twice_the_same_token, "its header and what it lays out"), (experts, "its header")],
)
def test_a_file_that_ends_llama_cpp_ends_the_server_with_a_sentence(
    spoil: Spoil, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoil(files.BASE.read_bytes()))
    said = refused(model_path=path)
    assert said.startswith(f"model server: opening {path}: {part}")
    assert "SIGABRT; the file is damaged or was made badly" in said
    assert "GGML_ASSERT" in said


def test_a_template_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endless.gguf"
    path.write_bytes(endless(files.BASE.read_bytes()))
    monkeypatch.setattr(trial, "_TIMEOUT_S", 5.0)
    with pytest.raises(StartError, match=r"endless\.gguf: its chat template: did not end in 5 s"):
        trial.require([path])


def test_a_file_that_takes_much_memory_to_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(large(files.BASE.read_bytes()))
    monkeypatch.setattr(trial, "_TIMEOUT_S", 300.0)
    with pytest.raises(
        StartError, match=r"large\.gguf: its chat template: it took too much memory"
    ):
        trial.require([path], free_bytes=2**29)


def test_a_good_file_takes_little_memory_to_open(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trial.require([files.BASE, files.HEADS], free_bytes=2**29)
    assert "was not tried" not in caplog.text


def test_the_kernel_ends_that_process_first() -> None:
    """Where memory runs out before anybody looks."""
    code = "from model_server.llama import matmuls; matmuls.may_die()"
    code += "; print(open('/proc/self/oom_score_adj').read())"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.split() == ["1000"], ended.stderr
