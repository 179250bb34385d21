"""Fewer tokens: which are kept, and what is left of the heads' proposals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_server.engine.cost import HeadCosts
from model_server.errors import HeadFileError
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.medusa.heads import HeadOptions, Heads
from model_server.speculation.confidence import HeadConfidence
from model_server.tools.doctor import trim
from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.replay import TREE_ROWS, walk
from model_server.tools.doctor.report import Kept, Report, Table
from model_server.tools.doctor.write_back import write_trimmed
from tests import random_heads
from tests.model_server.medusa.test_heads import drawn, states
from tests.model_server.tools.doctor.tracks import track
from tests.random_heads import Kind

ANSWER = track([7, 3, 7, 9], [[3, 5]], [[7, 3]], [[8, 9]])


def test_the_most_frequent_are_kept_and_of_equals_the_lower_ids() -> None:
    asked = replace(ANSWER, prompt=np.array([9, 9, 9, 4], np.int32))
    everything = np.arange(12)
    assert trim.most_frequent([asked], everything, 2).tolist() == [7, 9]
    assert trim.most_frequent([asked], everything, 3).tolist() == [3, 7, 9]
    assert trim.most_frequent([asked], everything, 6).tolist() == [0, 1, 3, 4, 7, 9]


def test_only_tokens_that_the_heads_know_are_kept() -> None:
    assert trim.most_frequent([ANSWER], np.array([10, 3, 2]), 2).tolist() == [2, 3]


def test_candidates_that_are_not_kept_give_way_to_those_behind_them() -> None:
    restricted = trim.restrict(ANSWER, np.array([3, 7, 9]))
    assert restricted.ids[:, 0].tolist() == [[3, -2], [7, 3], [9, -2]]
    assert restricted.log_probs[2, 0].tolist() == pytest.approx([np.log(0.25), -99])
    assert trim.covered([ANSWER], np.array([3, 7])) == 0.75
    whole, few = (
        walk([each], HeadConfidence(1), most_leaves=8)[0, TREE_ROWS.index(2)]
        for each in (ANSWER, trim.restrict(ANSWER, np.array([5, 8])))
    )
    assert whole.tolist() == [3, 2]
    assert few.tolist() == [3, 3]


@pytest.fixture(scope="module")
def base(random_q8_path: Path) -> Iterator[Model]:
    model = Model(random_q8_path, n_gpu_layers=0)
    yield model
    model.close()


def test_heads_cost_what_they_read(base: Model, tmp_path: Path) -> None:
    """A block has 256 rows, the output 512: two thirds of what is read."""
    path = random_heads.write(tmp_path / "heads.gguf", Kind("Q8_0"))
    heads = HeadCosts({number: {1: 0.003 * number} for number in (1, 2, 3)})
    own = trim.costs(head_file.read(path, base), heads, 256)
    assert own.seconds(2, 1) == pytest.approx(0.006 * 2 / 3)
    path = random_heads.write(tmp_path / "shared.gguf", Kind("Q8_0", shared=True, trim=256))
    shared = trim.costs(head_file.read(path, base), heads, 128)
    assert shared.seconds(2, 1) == pytest.approx(0.006 * (2 + 0.5) / (2 + 1))


@pytest.mark.parametrize(
    "kind",
    [
        Kind("Q8_0"),
        Kind("Q4_K", bias=False),
        Kind("F32", calibrated=True),
        Kind("Q8_0", trim=300),
        Kind("Q8_0", shared=True),
        Kind("Q8_0", shared=True, token=True),
        Kind("F32", shared=True, trim=300),
    ],
)
def test_trimmed_heads_say_what_the_whole_ones_do_of_their_tokens(
    base: Model, tmp_path: Path, report: Report, kind: Kind
) -> None:
    path, target = random_heads.write(tmp_path / "heads.gguf", kind), tmp_path / "few.gguf"
    known = trim.known(head_file.read(path, base))
    tokens = np.sort(np.random.default_rng(2).permutation(known)[:100])
    whole_table = report.calibration
    table = Table(whole_table.accuracy[: kind.num_heads], whole_table.count[: kind.num_heads])
    before = path.read_bytes()
    said = write_trimmed(path, target, replace(report, kept=Kept(tuple(tokens.tolist()), table)))
    assert said.startswith(f"{target} holds these heads with 100 tokens, ")
    assert path.read_bytes() == before
    whole, few = (Heads(each, base, HeadOptions(1, any_base=True)) for each in (path, target))
    everything = whole.propose(states(4), drawn(4), 3, 512)
    found = few.propose(states(4), drawn(4), 3, 10)
    assert few.calibration is not None
    for row, head in np.ndindex(4, 3):
        ids = everything.ids[row, head]
        is_kept = np.isin(ids, tokens)
        assert found.ids[row, head].tolist() == ids[is_kept][:10].tolist()
        log_probs = everything.log_probs[row, head][is_kept]
        log_probs -= np.logaddexp.reduce(log_probs)
        np.testing.assert_allclose(found.log_probs[row, head], log_probs[:10], atol=1e-4)
    whole.close()
    few.close()
    assert target.stat().st_size < path.stat().st_size or kind.shared


def test_the_report_says_what_fewer_tokens_cost_and_win(report: Report) -> None:
    """The twin's answers use all tokens alike: of those that are not kept none is accepted."""
    assert [each.num_tokens for each in report.trims] == [256, 128, 64]
    assert report.kept is None
    by_trim = (report.predictions, *(each.predictions for each in report.trims))
    tokens = [each.tokens_per_step for found in by_trim for each in found if each.rows == 8]
    assert tokens == sorted(tokens, reverse=True)
    assert 1 <= tokens[-1] < tokens[0] - 0.2
    covered = [each.covered for each in report.trims]
    assert covered == sorted(covered, reverse=True)


def test_a_trimmed_files_calibration_is_its_own(
    twin_path: Path,
    twin_heads_path: Path,
    prompts_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the doctor finds it when asked about that file, but for what kernels round."""
    monkeypatch.setenv("N_THREADS", "1")
    options = ExamineOptions(prompts_path, 8, 40)
    trimmed = examine(twin_path, twin_heads_path, replace(options, keep=100))
    write_trimmed(twin_heads_path, tmp_path / "few.gguf", trimmed)
    own = examine(twin_path, tmp_path / "few.gguf", options)
    assert trimmed.kept is not None
    moved = np.array(trimmed.kept.calibration.count) - np.array(own.calibration.count)
    assert np.abs(moved).sum() <= 0.01 * np.sum(own.calibration.count)
    assert own.calibration_errors.stored == pytest.approx(0, abs=0.02)


def test_what_can_not_be_trimmed_is_refused(twin_path: Path, twin_heads_path: Path) -> None:
    with pytest.raises(HeadFileError, match="know 512 tokens: they can't be trimmed to 512"):
        examine(twin_path, twin_heads_path, ExamineOptions(keep=512))
