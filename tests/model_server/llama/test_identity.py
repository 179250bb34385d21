from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.llama import backend, identity


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    identity.build.cache_clear()
    identity.processor.cache_clear()


def build_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(backend, "LIBRARIES", folder)
    forget()
    return identity.build()


def test_a_build_is_what_its_libraries_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "libggml.so").write_bytes(b"code")
        (folder / "README").write_bytes(folder.name.encode())
    same = [build_of(folder, monkeypatch) for folder in folders]
    assert same[0] == same[1]
    (folders[0] / "libggml.so").write_bytes(b"cods")
    assert build_of(folders[0], monkeypatch) != same[0]
    (folders[1] / "libggml.so").rename(folders[1] / "libggml.so.0")
    assert build_of(folders[1], monkeypatch) != same[1]


def test_kernels_that_lie_elsewhere_are_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured and tried with some does not hold for others."""
    (tmp_path / "lib").mkdir()
    found = [build_of(tmp_path / "lib", monkeypatch)]
    for code in (b"code", b"cods"):
        (tmp_path / "kernels.so").write_bytes(code)
        monkeypatch.setenv("CPU_KERNELS_LIB", str(tmp_path / "kernels.so"))
        found.append(build_of(tmp_path / "lib", monkeypatch))
    assert len(set(found)) == 3


def test_large_libraries_are_told_apart_by_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_MAX_HASHED_BYTES", 3)
    path = tmp_path / "libggml-cuda.so"
    path.write_bytes(b"code")
    before = build_of(tmp_path, monkeypatch)
    assert build_of(tmp_path, monkeypatch) == before
    path.touch()
    assert build_of(tmp_path, monkeypatch) != before


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu amx_tile\ncpu MHz\t\t: 2100.1\n\n"
            "processor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n\n",
            {"model name": "Xeon", "flags": "fpu amx_tile"},
        ),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", {"CPU part": "0xd0c"}),
    ],
)
def test_a_processor_is_told_by_what_all_of_its_kind_share(
    text: str, kind: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(identity, "_CPU_INFO", tmp_path / "cpuinfo")
    assert identity.processor() == kind


def test_a_processor_that_cannot_be_told_is_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_CPU_INFO", tmp_path / "none")
    assert identity.processor()["machine"]
    assert identity.processor_name()


def test_sentences_name_this_build_and_processor() -> None:
    assert identity.build_name().startswith("llama.cpp of llama-cpp-python 0.3.36 in /")
    assert identity.processor_name() in str(identity.processor())
