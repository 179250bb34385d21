"""Prompts around a gap, in the order of llama-server's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.contract.protocol import GenerateRequest
from model_server.engine.infilling import REPOSITORY, SEPARATOR, THIS_FILE
from model_server.engine.prompt import PromptEncoder
from model_server.errors import PromptRefused, PromptTooLong
from model_server.llama.model import Model
from model_server.llama.vocab import Vocab
from tests import infill_twin, vocabulary
from tests.infill_twin import FILES, TOKENS

CONTEXT = 512
EXTRA = [{"text": "be bi", "filename": "a.py"}, {"text": "bo bu", "filename": "b.py"}]


@pytest.fixture(scope="module", params=[True, False], ids=["files", "no files"])
def knowing(
    twin_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Vocab]:
    path = tmp_path_factory.mktemp("infill") / "twin.gguf"
    model = Model(infill_twin.write(twin_path, path, files=request.param), 0)
    yield model.vocab
    model.close()


def encode(vocab: Vocab, prompt: str = "ba", context: int = CONTEXT, **fields: object) -> list[int]:
    infill = {"suffix": "ca", **fields}
    given = {"id": "a", "prompt": prompt, "infill": infill, "max_tokens": 12}
    encoder = PromptEncoder(vocab, None, context)
    return encoder.encode(GenerateRequest.model_validate(given))


def around(vocab: Vocab, before: str, behind: str) -> list[int]:
    return [
        TOKENS["pre"],
        *vocab.tokenize(before),
        TOKENS["suf"],
        *vocab.tokenize(behind),
        TOKENS["mid"],
    ]


def files(vocab: Vocab, *snippets: tuple[str, str]) -> list[int]:
    """By hand: the repository, each file, and this one."""
    if not FILES.keys() <= vocab.infill.keys():
        parts = [vocab.tokenize(SEPARATOR) + vocab.tokenize(text) for _, text in snippets]
        return [token for part in parts for token in part]
    made = [FILES["rep"], *vocab.tokenize(REPOSITORY)]
    for name, text in snippets:
        made += [FILES["sep"], *vocab.tokenize(f"{name}\n"), *vocab.tokenize(text)]
    return [*made, FILES["sep"], *vocab.tokenize(THIS_FILE)]


def test_what_is_before_and_behind_stands_before_the_gap(knowing: Vocab) -> None:
    expected = [vocabulary.BOS, *files(knowing), *around(knowing, "ba", "ca")]
    assert encode(knowing) == expected


def test_other_files_come_first(knowing: Vocab) -> None:
    names = [("a.py", "be bi"), ("b.py", "bo bu")]
    expected = [vocabulary.BOS, *files(knowing, *names), *around(knowing, "ba", "ca")]
    assert encode(knowing, extra=EXTRA, trims=True) == expected


def test_either_side_may_be_empty(knowing: Vocab) -> None:
    assert encode(knowing, "", suffix="")[-3:] == [TOKENS["pre"], TOKENS["suf"], TOKENS["mid"]]


def test_texts_of_its_tokens_stay_text(knowing: Vocab) -> None:
    around_it = around(knowing, "</s>", "<s>")
    assert encode(knowing, "</s>", suffix="<s>")[-len(around_it) :] == around_it
    assert vocabulary.EOS not in around_it


def test_what_is_far_from_the_gap_goes_first(knowing: Vocab) -> None:
    long = {"before": "ba be bi " * 100, "behind": "ca ce ci " * 100}
    left, right = (knowing.tokenize(text) for text in long.values())
    made = encode(knowing, long["before"], 128, suffix=long["behind"], extra=EXTRA, trims=True)
    assert len(made) == 128 - 12
    pre, suf = made.index(TOKENS["pre"]), made.index(TOKENS["suf"])
    assert made[:pre] == [vocabulary.BOS]
    assert made[pre + 1 : suf] == left[-(suf - pre - 1) :]
    assert made[suf + 1 : -1] == right[: len(made) - suf - 2]
    assert (suf - pre - 1) / (len(made) - suf - 2) == pytest.approx(3, abs=0.1)


def test_a_short_side_leaves_its_room_to_the_other(knowing: Vocab) -> None:
    made = encode(knowing, "ba", 128, suffix="ca ce ci " * 100, trims=True)
    assert len(made) == 128 - 12
    made = encode(knowing, "ba be bi " * 100, 128, suffix="ca", trims=True)
    assert made[-3:] == [TOKENS["suf"], *knowing.tokenize("ca"), TOKENS["mid"]][-3:]
    assert len(made) == 128 - 12


def test_other_files_have_what_is_left_the_nearest_first(knowing: Vocab) -> None:
    extra = [{"text": f"{name} " * 40, "filename": f"{name}.py"} for name in ("be", "bi", "bo")]
    made = encode(knowing, "ba", 128, extra=extra, trims=True)
    assert len(made) == 128 - 12
    others = made[1 : made.index(TOKENS["pre"])]
    whole = files(knowing, *((f"{name}.py", f"{name} " * 40) for name in ("be", "bi", "bo")))
    assert others == whole[len(whole) - len(others) :]


def test_megabytes_are_no_work(knowing: Vocab) -> None:
    extra = [{"text": "x" * 5_000_000}, {"text": "bo bu"}]
    made = encode(knowing, "a" * 5_000_000, 128, suffix="b" * 5_000_000, extra=extra, trims=True)
    assert len(made) == 128 - 12


def test_nothing_is_left_away_unless_asked(knowing: Vocab) -> None:
    with pytest.raises(PromptTooLong):
        encode(knowing, "ba be bi " * 50, 128)
    with pytest.raises(PromptTooLong, match="at most"):
        encode(knowing, suffix="a" * 100_000)


def test_a_model_without_the_tokens_says_so(vocab: Vocab) -> None:
    assert vocab.infill == {}
    with pytest.raises(PromptRefused, match="no tokens for filling gaps") as refused:
        encode(vocab)
    assert refused.value.param == "suffix"
