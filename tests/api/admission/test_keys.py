import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.admission.keys import RELOAD_S, BadKeyFile, Keys, new_key
from api.errors import GatewayError

ROOT = Path(__file__).parents[3]


def refuses(error: GatewayError) -> bool:
    return error.code == "invalid_api_key"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def made(path: Path, *names: str) -> list[str]:
    """A file with a key for each name; the keys."""
    keys = [new_key(name) for name in names]
    write(path, "# who may come in", "", *[line for _, line in keys])
    return [key for key, _ in keys]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_a_key_is_known_by_its_hash_alone(path: Path) -> None:
    ann, bob = made(path, "ann", "bob")
    keys = Keys(path)
    assert keys.name_of(f"Bearer {ann}") == "ann"
    assert keys.name_of(f"bearer  {bob} ") == "bob"
    assert ann not in path.read_text()
    assert len({ann, bob, made(path, "ann")[0]}) == 3


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer \u00e9"]
)
def test_other_headers_are_refused_and_not_repeated(path: Path, header: str) -> None:
    key = made(path, "ann")[0]
    with pytest.raises(GatewayError, check=refuses) as refused:
        Keys(path).name_of(header.format(key=key))
    assert key not in str(refused.value)


def test_the_hash_is_not_the_key(path: Path) -> None:
    made(path, "ann")
    stored = path.read_text().split(":")[1].strip()
    with pytest.raises(GatewayError, check=refuses):
        Keys(path).name_of(f"Bearer {stored}")


def test_a_changed_file_is_read_again_but_not_for_every_request(path: Path) -> None:
    clock = Clock()
    old = made(path, "ann")[0]
    keys = Keys(path, clock)
    new = made(path, "ann", "bob")[1]
    with pytest.raises(GatewayError, check=refuses):
        keys.name_of(f"Bearer {new}")
    clock.now = RELOAD_S
    assert keys.name_of(f"Bearer {new}") == "bob"
    with pytest.raises(GatewayError, check=refuses):
        keys.name_of(f"Bearer {old}")


@pytest.mark.parametrize("broken", ["ann", "ann:abc", "", None])
def test_a_broken_file_at_reload_keeps_the_old_keys(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key = made(path, "ann")[0]
    keys = Keys(path, clock)
    path.unlink() if broken is None else write(path, broken)
    for now in (1, 2, 3):
        clock.now = now * RELOAD_S
        assert keys.name_of(f"Bearer {key}") == "ann"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert str(path) in errors[0].getMessage()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no key"),
        (b"# nothing\n", "holds no key"),
        (b"ann\n", "line 1"),
        (b"# x\nsk-secret\n", "line 2"),
        (b"ann:" + b"0" * 63, "line 1"),
        (b"an n:" + b"0" * 64, "line 1"),
        (b"\xff\xfe", "not text"),
    ],
)
def test_a_broken_file_at_start_names_the_line_and_shows_none(
    path: Path, text: bytes, words: str
) -> None:
    path.write_bytes(text)
    with pytest.raises(BadKeyFile, match=words) as broken:
        Keys(path)
    assert str(path) in str(broken.value)
    assert "secret" not in str(broken.value)


def test_no_file_is_a_sentence(path: Path) -> None:
    with pytest.raises(BadKeyFile, match="No such file"):
        Keys(path)


def test_a_comparison_looks_at_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = made(path, "ann", "bob", "cy")[0]
    compared = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert Keys(path).name_of(f"Bearer {ann}") == "ann"
    assert len(compared) == 3


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "api.admission.keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def test_the_command_makes_a_line_and_a_key(path: Path) -> None:
    done = run("new", "ann")
    assert done.returncode == 0
    path.write_text(done.stdout)
    key = done.stderr.split()[-1]
    assert Keys(path).name_of(f"Bearer {key}") == "ann"
    assert key not in done.stdout


@pytest.mark.parametrize("arguments", [(), ("new",), ("new", "a b"), ("new", "a:b"), ("old", "a")])
def test_the_command_refuses_what_it_cannot_do(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
