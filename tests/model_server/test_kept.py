from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from model_server import kept

KEY = {"model": "a", "threads": [1, 2]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is kept; made by the first who keeps something."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "medusa"


def only(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_what_was_kept_is_recalled_by_all_of_its_key() -> None:
    kept.keep("costs", KEY, {1: 0.5})
    assert kept.recall("costs", KEY, dict[int, float]) == {1: 0.5}
    assert kept.recall("costs", {"threads": [1, 2], "model": "a"}, dict[int, float]) == {1: 0.5}
    for other in ({**KEY, "model": "b"}, {**KEY, "threads": [2, 1]}, {"model": "a"}, {}):
        assert kept.recall("costs", other, dict[int, float]) is None
    assert kept.recall("trial", KEY, dict[int, float]) is None


def test_the_last_one_kept_counts(folder: Path) -> None:
    for value in (1, 2):
        kept.keep("a", KEY, value)
    assert kept.recall("a", KEY, int) == 2
    assert stat.S_IMODE(only(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_another_type_is_not_recalled() -> None:
    kept.keep("a", KEY, {"1": "word"})
    assert kept.recall("a", KEY, dict[int, float]) is None


@pytest.mark.parametrize("place", range(0, 240, 7))
def test_a_changed_byte_spoils_it(folder: Path, place: int) -> None:
    kept.keep("a", KEY, list(range(50)))
    path = only(folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert kept.recall("a", KEY, list[int]) is None


@pytest.mark.parametrize("length", [0, 1, 64, 65, 66, 100])
def test_half_a_file_is_none(folder: Path, length: int) -> None:
    kept.keep("a", KEY, list(range(50)))
    os.truncate(only(folder), length)
    assert kept.recall("a", KEY, list[int]) is None
    kept.keep("a", KEY, [1])
    assert kept.recall("a", KEY, list[int]) == [1]


def test_a_file_under_another_name_is_not_believed(folder: Path) -> None:
    kept.keep("a", KEY, 1)
    stranger = only(folder).read_bytes()
    kept.keep("a", {}, 2)
    for path in folder.iterdir():
        path.write_bytes(stranger)
    assert kept.recall("a", KEY, int) == 1
    assert kept.recall("a", {}, int) is None


def test_what_is_no_file_holds_nobody_up(folder: Path, tmp_path: Path) -> None:
    kept.keep("a", KEY, 1)
    path = only(folder)
    path.rename(tmp_path / "elsewhere")
    for make in (os.mkfifo, os.mkdir):
        make(path)
        assert kept.recall("a", KEY, int) is None
        os.rmdir(path) if path.is_dir() else path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert kept.recall("a", KEY, int) is None
    kept.keep("a", KEY, 2)  # replaces the link, not what it leads to
    assert kept.recall("a", KEY, int) == 2
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_to_is_not_used(folder: Path, mode: int) -> None:
    kept.keep("a", KEY, 1)
    folder.chmod(mode)
    assert kept.recall("a", KEY, int) is None
    kept.keep("b", KEY, 1)
    assert len(list(folder.iterdir())) == 1


def test_a_link_to_a_folder_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    kept.keep("a", KEY, 1)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(folder: Path) -> None:
    kept.keep("a", KEY, 1)
    os.chown(folder, 10_001, -1)
    assert kept.recall("a", KEY, int) is None


@pytest.mark.parametrize("home", ["/proc/1", "/dev/null", "relative", "/dev/full"])
def test_where_nothing_can_be_written_nothing_is_kept(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    kept.keep("a", KEY, 1)
    assert kept.recall("a", KEY, int) is None
    assert not Path("relative").exists()


def test_a_full_disk_leaves_nothing_behind(folder: Path) -> None:
    code = """
import resource
from model_server import kept
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
kept.keep("a", {}, list(range(100)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(folder.iterdir()) == []


def test_it_lies_in_the_home_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    kept.keep("a", KEY, 1)
    assert len(list((tmp_path / ".cache" / "medusa").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_keeps_nothing() -> None:
    code = """
import os, sys
from model_server import kept
os.setuid(54_321)
kept.keep("a", {}, 1)
sys.exit(kept.recall("a", {}, int) is not None)
"""
    env = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_many_may_keep_and_recall_at_once(folder: Path) -> None:
    """Each sees one of the values whole, or none yet."""
    code = """
import sys
from model_server import kept
number = int(sys.argv[1])
for _ in range(200):
    kept.keep("a", {}, [number] * 2_000)
    found = kept.recall("a", {}, list[int])
    assert found and len(found) == 2_000 and len(set(found)) == 1, found
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(each)]) for each in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(list(folder.iterdir())) == 1
