"""The twin's heads are right as often as was chosen: that must come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model_server.errors import HeadFileError, PromptsError, RequestError
from model_server.llama.gguf import GgufHeader
from model_server.llama.model import Model
from model_server.tools.doctor import prompts
from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.report import Report
from tests import random_heads, twin, twin_heads
from tests.model_server.tools.doctor.conftest import NUM_PROMPTS, NUM_TOKENS
from tests.random_heads import Kind
from tests.twin_heads import NUM_RANKS, PUBLISHED


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_THREADS", "1")


def known_ranks() -> list[tuple[npt.NDArray[np.int64], int]]:
    """Of every head behind each token that gave one of an answer's, with the targets it has."""
    options = twin_heads.Options(PUBLISHED)
    found = []
    for seed in range(NUM_PROMPTS):
        prompt = twin.prompt(5, seed=seed)
        answer = twin.answer(prompt, NUM_TOKENS)
        states = [prompt[-1], *answer[:-2]]
        found.append((twin_heads.right_rank(states, twin.TINY, options), len(answer)))
    return found


def test_known_accuracies_are_recovered(report: Report) -> None:
    """To the last position those that are known, and the chosen ones within sampling error."""
    for head, shares in enumerate(report.accuracy.alone):
        ranks = np.concatenate([r[: n - 1 - head, head] for r, n in known_ranks()])
        expected = [(ranks <= rank).mean() for rank in range(NUM_RANKS)]
        assert report.accuracy.num_alone[head] == len(ranks)
        np.testing.assert_allclose(shares[:NUM_RANKS], expected, atol=1e-9)
        np.testing.assert_allclose(shares[:NUM_RANKS], PUBLISHED.cumulative[head], atol=0.06)


def test_heads_are_independent_so_that_being_reached_changes_little(report: Report) -> None:
    alone, behind = report.accuracy.alone, report.accuracy.behind_right
    assert behind[0] == alone[0]
    np.testing.assert_allclose(behind[1][:NUM_RANKS], alone[1][:NUM_RANKS], atol=0.08)
    counts = report.accuracy.num_behind_right
    assert list(counts) == sorted(counts, reverse=True)


def test_the_fit_says_what_the_files_are(
    report: Report, twin_path: Path, twin_heads_path: Path
) -> None:
    fit = report.fit
    assert (fit.base_name, fit.base_file) == ("tiny twin", str(twin_path))
    assert (fit.heads_file, fit.made_for) == (str(twin_heads_path), "unknown")
    assert (fit.num_heads, fit.num_blocks, fit.hidden_size) == (5, 1, 512)
    assert (fit.matrix_type, fit.output_type, fit.shared_output) == ("Q8_0", "Q8_0", False)
    assert (fit.vocab_size, fit.num_tokens, fit.is_calibrated) == (512, 512, False)
    assert not fit.sees_token
    assert report.sample.num_prompts == NUM_PROMPTS
    assert report.sample.num_tokens == sum(n for _, n in known_ranks())


def test_calibration_gets_better_and_trees_win_what_accuracy_implies(report: Report) -> None:
    errors = report.calibration_errors
    assert errors.fitted < 0.05
    assert errors.before == errors.softmax > errors.fitted
    by_rows = {each.rows: each for each in report.predictions}
    for rows in (2, 4, 8, 16):
        implied = twin_heads.expected_tokens_per_step(PUBLISHED, rows)
        assert by_rows[rows].tokens_per_step == pytest.approx(implied, rel=0.08)
    assert (report.verdict.grade, report.n_threads) == ("good", 1)


def test_heads_of_another_base_are_refused_unless_one_insists(
    random_q8_path: Path, twin_path: Path, tmp_path: Path
) -> None:
    other = Model(twin_path, n_gpu_layers=0)
    path = random_heads.write(
        tmp_path / "heads.gguf", Kind("Q8_0", 2, base_fingerprint=other.base_fingerprint)
    )
    other.close()
    with pytest.raises(HeadFileError, match="these heads were made for another base"):
        examine(random_q8_path, path)
    found = examine(random_q8_path, path, ExamineOptions(None, 4, 8, any_base=True))
    assert found.fit.made_for == "another base"
    assert found.verdict.grade == "useless"
    assert "were they made for another quantization or model?" in found.verdict.sentence


@pytest.mark.parametrize("name", ["head.1.output.weight", "head.1.block.0.weight"])
def test_weights_that_are_no_numbers_are_refused(
    name: str, random_q8_path: Path, tmp_path: Path
) -> None:
    path = random_heads.write(tmp_path / "heads.gguf", Kind("F32", 2))
    header = GgufHeader(path)
    offset = header.tensors[name].offset
    header.close()
    with path.open("r+b") as file:
        file.seek(offset + 4 * 1_000)
        file.write(np.float32("nan").tobytes())
    with pytest.raises(HeadFileError, match="head 1 gives no numbers: its weights are damaged"):
        examine(random_q8_path, path, ExamineOptions(None, 4, 8))


def test_answers_too_short_to_judge_by_are_refused(
    twin_path: Path, twin_heads_path: Path, prompts_path: Path
) -> None:
    with pytest.raises(PromptsError, match="too few answers of more than 5 tokens to judge by"):
        examine(twin_path, twin_heads_path, ExamineOptions(prompts_path, 4, 4))


def test_prompts_are_lines_as_for_training(random_q8_path: Path, tmp_path: Path) -> None:
    """A chat and a prompt in JSON are asked as such; a bad one is named."""
    heads = random_heads.write(tmp_path / "heads.gguf", Kind("Q8_0", 2))
    path = tmp_path / "prompts.jsonl"
    path.write_text("one two\n" + json.dumps({"prompt": "one two"}))
    asked = [prompts.read(path, 2, seed=0)[0]] * 2
    same = examine(random_q8_path, heads, ExamineOptions(None, 2, 8, given=asked))
    found = examine(random_q8_path, heads, ExamineOptions(path, 2, 8))
    assert found.accuracy == same.accuracy
    path.write_text('one two\n{"promt": "three"}\n')
    with pytest.raises(PromptsError, match=r"prompts\.jsonl, line 2: .*exactly one of prompt"):
        examine(random_q8_path, heads, ExamineOptions(path, 2, 8))


def test_a_prompt_beyond_the_context_is_refused(
    twin_path: Path, twin_heads_path: Path, prompts_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CONTEXT_SIZE", "64")
    with pytest.raises(RequestError, match="context of 64 tokens"):
        examine(twin_path, twin_heads_path, ExamineOptions(prompts_path, 4, 62))
