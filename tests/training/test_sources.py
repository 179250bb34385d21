from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_server.engine.prompt import VICUNA_TEMPLATE, PromptEncoder
from model_server.errors import StartError
from model_server.llama.model import Model
from model_server.training import sources
from model_server.training.sources import Source, SourceText


@pytest.fixture
def encoder(twin: Model) -> PromptEncoder:
    return PromptEncoder(twin.vocab, None, 256)


def test_a_line_is_a_prompt(twin: Model, encoder: PromptEncoder, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('one two\n\n{"prompt": "three"}\n')
    found = sources.prompts([path], encoder)
    bos = twin.vocab.bos
    assert [source.tokens for source in found] == [
        [bos, *twin.vocab.tokenize("one two")],
        [bos, *twin.vocab.tokenize("three")],
    ]


def test_neither_blanks_nor_a_mark_of_utf8_belong_to_a_line(
    twin: Model, encoder: PromptEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\n  {"prompt": "two"}\n three \n')
    found = sources.prompts([path], encoder)
    words = [twin.vocab.tokenize(word) for word in ("one", "two", "three")]
    assert [source.tokens for source in found] == [[twin.vocab.bos, *word] for word in words]


def test_a_line_is_what_a_user_says_where_there_is_a_template(twin: Model, tmp_path: Path) -> None:
    encoder = PromptEncoder(twin.vocab, VICUNA_TEMPLATE, 256)
    path = tmp_path / "prompts.txt"
    said = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    path.write_text(f"hi\n{said}\n")
    first, second = sources.prompts([path], encoder)
    assert list(first.tokens) == list(second.tokens)
    assert "USER:" in b"".join(map(twin.vocab.piece, first.tokens)).decode()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": 3}', "line 2: prompt: Input should be a valid string"),
        ('{"promt": "x"}', "exactly one of prompt"),
        ("{", "Expecting property name"),
        ("a" * 10_000, "prompt has"),
    ],
)
def test_a_bad_line_is_named(
    line: str, problem: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"good\n{line}\n")
    with pytest.raises(StartError, match=r"prompts.txt, line 2: ") as raised:
        sources.prompts([path], encoder)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_texts_are_cut_into_pieces(twin: Model) -> None:
    text = "one two three four five six seven"
    tokens = twin.vocab.tokenize(text)
    found = sources.pieces(
        [SourceText(text, "a"), SourceText("", "b")], twin.vocab, 8, answered=False
    )
    assert [token for source in found for token in source.tokens[1:]] == tokens
    assert {len(source.tokens) for source in found[:-1]} == {8}
    assert {source.tokens[0] for source in found} == {twin.vocab.bos}
    assert not any(source.answered for source in found)


def test_folders_are_read_whole_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [text.content for text in sources.read_texts([tmp_path])] == [
        "a.txt",
        "b/1.txt",
        "b/2.txt",
    ]


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match="binary: not a text file"):
        sources.read_texts([tmp_path / "binary"])
    with pytest.raises(StartError, match="none: No such file"):
        sources.read_texts([tmp_path / "none"])


def test_what_is_no_text_in_a_folder_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "text").write_text("good")
    assert [text.content for text in sources.read_texts([tmp_path])] == ["good"]


def test_groups_are_held_out_together_and_about_as_many_as_wanted() -> None:
    groups = [f"group {number}" for number in range(1_000)]
    held_out = {group for group in groups if Source([1], group).held_out(0.1)}
    assert 70 < len(held_out) < 130
    assert held_out == {group for group in groups if Source([2, 3], group).held_out(0.1)}


def test_a_choice_is_seeded() -> None:
    given = [Source([number], "") for number in range(50)]
    first, again, other = (sources.choose(given, 10, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10
    assert sorted(s.tokens[0] for s in sources.choose(given, 0, 3)) == list(range(50))
    assert sources.digest(first) != sources.digest(other)
