from __future__ import annotations

from pathlib import Path

import pytest

from model_server.errors import PromptsError
from model_server.tools.doctor import prompts


def test_the_built_in_prompts_are_many_and_different() -> None:
    found = prompts.read(None, 1_000, seed=0)
    assert len({prompt.text for prompt in found}) == len(found) >= 40
    assert not any(prompt.is_piece for prompt in found)
    assert len(prompts.read(None, 5, seed=0)) == 5
    assert prompts.read(None, 5, seed=0) != prompts.read(None, 5, seed=1)


def test_a_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \nthree\n", "utf-8-sig")
    found = prompts.read(path, 9, seed=0)
    assert [prompt.text for prompt in found] == ["one", "two", "three"]
    assert [prompt.place for prompt in found] == [f"{path}, line {line}" for line in (1, 3, 4)]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\r\nd\n', newline="")
    found = prompts.read(path, 9, seed=0)
    assert [prompt.text for prompt in found] == ['{"prompt": "a\u2028b\x85c"}', "d"]


def test_a_folder_gives_pieces_of_its_texts(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    lines = [f"line {number} of a text\n" for number in range(400)]
    (tmp_path / "deeper" / "long.py").write_text("".join(lines))
    (tmp_path / "short.py").write_text("too short\n")
    (tmp_path / "picture.bin").write_bytes(b"\0" * 9_999)
    found = prompts.read(tmp_path, 6, seed=0)
    assert found == prompts.read(tmp_path, 6, seed=0) != prompts.read(tmp_path, 6, seed=1)
    assert len({prompt.text for prompt in found}) == 6
    for prompt in found:
        assert prompt.is_piece
        assert prompt.text.splitlines(keepends=True)[0] in lines
        assert prompt.text in "".join(lines)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file or folder"),
        (b"\n \n", "is empty, must hold a prompt on each line"),
        (b"\xff\xfe", "must be UTF-8 text: invalid start byte"),
    ],
)
def test_a_file_without_prompts_is_refused(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptsError) as refused:
        prompts.read(path, 9, seed=0)
    assert str(refused.value) == f"{path}: {problem}"


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="holds no text file of 200 characters or more"):
        prompts.read(tmp_path, 9, seed=0)
