"""What an installed package fetches and builds at its first start, with stand-ins for pip."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployment import needs
from model_server import places
from model_server.kept import keep, recall


def test_of_two_that_start_at_once_one_fetches_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []

    def fetch(command: Sequence[str | Path], _log: Path, _problem: str) -> None:
        part = Path(command[command.index("--target") + 1])
        time.sleep(0.2)
        (part / "demo").mkdir(parents=True)
        fetched.append(part)

    monkeypatch.setattr(needs, "_run", fetch)
    folder = tmp_path / "cache" / "demo"
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(needs._fetch_demo, folder) for _ in range(2)]:
            done.result()
    assert len(fetched) == 1
    assert (folder / "demo").is_dir()


def test_options_of_the_build_are_those_that_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of .env too, which are in no process's environment."""

    class Enough(Exception):
        pass

    def stop(command: Sequence[str | Path], _log: Path, _problem: str) -> None:
        assert "CMAKE_ARGS=-DGGML_CUDA=on" in command
        raise Enough

    monkeypatch.setattr(needs, "_run", stop)
    monkeypatch.setattr(places, "INSTALLED", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Enough):
        needs.llama({"CMAKE_ARGS": "-DGGML_CUDA=on"})


def test_options_stay_where_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the doctor would build llama.cpp again, without them, and measure that."""
    monkeypatch.setattr(places, "INSTALLED", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    for options in ("", "-DGGML_CUDA=on"):
        places.make(places.llama() / needs.key(options))

    def found(env: dict[str, str]) -> Path:
        assert needs.found_llama(env)
        return Path(env["PYTHONPATH"])

    assert found({}).name == needs.key("")
    assert found({"CMAKE_ARGS": "-DGGML_CUDA=on"}).name == needs.key("-DGGML_CUDA=on")
    assert found({}).name == needs.key("-DGGML_CUDA=on")
    monkeypatch.setenv("CMAKE_ARGS", "")
    assert found({}).name == needs.key("")
    monkeypatch.delenv("CMAKE_ARGS")
    assert found({}).name == needs.key("")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's cache, where what is made is open to the user's group."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = os.umask(0o002)
    yield places.cache()
    os.umask(before)


def test_nobody_else_can_write_to_what_is_run(home: Path) -> None:
    places.make(home / "llama" / "built")
    assert (home / "llama" / "built").is_dir()
    assert home.stat().st_mode & 0o777 == 0o700
    keep("anything", {}, 1)
    assert recall("anything", {}, int) == 1


def test_code_that_others_can_write_to_is_not_run(home: Path) -> None:
    home.mkdir(parents=True)
    with pytest.raises(needs.CannotStart, match="can be written to by others"):
        needs._see({}, home / "llama")
    home.chmod(0o700)
    env: dict[str, str] = {}
    needs._see(env, home / "llama")
    assert env == {"PYTHONPATH": str(home / "llama")}
