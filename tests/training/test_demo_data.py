from __future__ import annotations

from pathlib import Path

import pytest

from model_server.training.demo import data


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of four modules, a test and things that are to be left out."""
    monkeypatch.setattr(data, "stdlib", lambda: tmp_path)
    for name in ("alpha", "beta", "gamma", "delta"):
        write(tmp_path / f"{name}.py", name)
    write(tmp_path / "test" / "test_alpha.py", "test_alpha")
    write(tmp_path / "site-packages" / "foreign.py", "foreign")
    write(tmp_path / "encodings" / "cp1.py", "cp1")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "table.py").write_text("x = [" + "12345," * 1000 + "]\n")
    (tmp_path / "empty.py").write_text("")
    return tmp_path


def write(path: Path, name: str) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = (f"def function_{name}_{i}():\n    return 'the {name} number {i}'\n" for i in range(99))
    path.write_text("\n".join(lines))


def test_what_is_no_source_is_left_out(library: Path) -> None:
    modules = ["alpha.py", "beta.py", "delta.py", "gamma.py"]
    assert data.python_files() == [*modules, "test/test_alpha.py"]


def test_split_is_disjoint(library: Path) -> None:
    split = data.split(["beta.py"])
    assert split.library == ["alpha.py", "delta.py", "gamma.py"]
    assert split.tests == ["test/test_alpha.py"]
    assert split.held_out == ["beta.py"]


def test_near_copies_of_held_out_files_are_not_trained_on(library: Path) -> None:
    write(library / "test" / "copy_of_beta.py", "beta")
    assert data.split(["beta.py"]).tests == ["test/test_alpha.py"]


def test_choice_does_not_depend_on_other_files(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "NUM_HELD_OUT", 1)
    [chosen] = data.choose_held_out(data.python_files())
    assert data.choose_held_out([chosen]) == [chosen]
    assert not data.is_test(chosen)


def test_shipped_list_is_of_distinct_library_files(demo_held_out: Path) -> None:
    paths = data.read_held_out(demo_held_out)
    assert len(set(paths)) == len(paths) == data.NUM_HELD_OUT
    assert not any(map(data.is_test, paths))
    assert all((data.stdlib() / path).exists() for path in paths)
