from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from model_server.tools.gguf_writer import whole


def test_a_file_appears_when_it_is_whole_and_its_folders_with_it(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "made.gguf"
    with whole(path) as part:
        part.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_in_its_place_is_seen_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"), whole(tmp_path):
        pytest.fail("the work has begun")
    assert list(tmp_path.parent.glob("*.part")) == []


def test_of_two_that_write_the_same_file_one_does(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with whole(path) as part:
        part.write_bytes(b"first")
        with pytest.raises(OSError, match="another program is writing it"), whole(path):
            pytest.fail("both write")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["a.gguf"]


def test_nothing_is_left_where_it_was_interrupted_right_behind_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupt)
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a.gguf"):
        pytest.fail("the work has begun")
    assert list(tmp_path.iterdir()) == []
