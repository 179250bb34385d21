from __future__ import annotations

from pathlib import Path

import pytest

from model_server.contract.protocol import PositionLogprobs, TokenLogprob
from model_server.tools.answers import WholeAnswer
from model_server.tools.verify import divergences, main
from tests import random_heads
from tests.random_heads import Kind


def token(token_id: int, logprob: float, *top: tuple[int, float]) -> PositionLogprobs:
    others = [TokenLogprob(id=i, text=f"t{i}", bytes=[], logprob=p) for i, p in top]
    return PositionLogprobs(id=token_id, text=f"t{token_id}", bytes=[], logprob=logprob, top=others)


def test_the_first_divergence_counts_with_its_margin() -> None:
    reference = WholeAnswer(
        logprobs=[token(1, -0.1), token(2, -0.7, (2, -0.7), (3, -0.75)), token(4, -0.1)]
    )
    other = WholeAnswer(logprobs=[token(1, -0.1), token(3, -0.7), token(9, -0.1)])
    unlikely = WholeAnswer(logprobs=[token(7, -0.1), token(3, -0.7), token(9, -0.1)])
    assert divergences([reference], [reference]) == []
    first, second = divergences([reference] * 2, [other, unlikely])
    assert (first.prompt, first.position, first.expected, first.got) == (0, 1, "t2", "t3")
    assert first.margin == pytest.approx(0.05)
    assert str(first) == "prompt 0, token 1: 't3' instead of 't2', margin 0.0500"
    assert second.margin is None


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_no_answer_differs_in_exact_mode(
    temperature: str,
    random_q8_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = random_heads.write(tmp_path / "heads.gguf", Kind(file_type="Q8_0"))
    settings = {"MODEL_PATH": random_q8_path, "MEDUSA_PATH": heads, "EXACT": "true"}
    for name, value in {**settings, "N_THREADS": 1, "MEDUSA_ROWS": 6}.items():
        monkeypatch.setenv(name, str(value))
    small = ["--num-prompts", "6", "--prompt-tokens", "30", "--tokens", "24"]
    assert main([*small, "--temperature", temperature]) == 0
    said = capsys.readouterr().out
    assert said.count("0 of 6 answers differ") == 3
    assert "drafts accepted" in said


def test_a_file_of_prompts_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--prompts", "none.txt"])
    assert "none.txt: No such file" in capsys.readouterr().err
