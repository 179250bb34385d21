from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from model_server.training.corpus import NO_TARGET, Corpus

HIDDEN = 3


def states(first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.arange(first, first + count, dtype=np.float32)[:, None].repeat(HIDDEN, 1)


def filled(folder: Path) -> Corpus:
    corpus = Corpus(folder, HIDDEN)
    corpus.append(states(0, 5), [10, 11, 12, 13, 14], held_out=False)
    corpus.append(states(5, 3), [20, 21, 22], held_out=True)
    corpus.append(states(8, 2), [30, 31], held_out=False)
    corpus.append(states(10, 3), [40, 41, 42], held_out=False)
    return corpus


def test_head_i_learns_the_token_i_plus_2_behind_a_state_of_the_same_text(tmp_path: Path) -> None:
    corpus = filled(tmp_path)
    none = NO_TARGET
    learnt, judged = (corpus.examples(3, held_out=held_out) for held_out in (False, True))
    assert learnt.rows.tolist() == [0, 1, 2, 10]
    assert learnt.targets.tolist() == [
        [12, 13, 14],
        [13, 14, none],
        [14, none, none],
        [42, none, none],
    ]
    assert learnt.drawn.tolist() == [11, 12, 13, 41]
    assert judged.rows.tolist() == [5]
    assert judged.targets.tolist() == [[22, none, none]]
    assert corpus.states()[learnt.rows, 0].tolist() == [0, 1, 2, 10]


def test_a_corpus_goes_on_where_it_stopped(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Corpus(tmp_path, HIDDEN)
    assert (again.num_texts, again.num_tokens) == (4, 13)
    again.append(states(13, 3), [50, 51, 52], held_out=False)
    assert Corpus(tmp_path, HIDDEN).examples(1, held_out=False).targets.tolist()[-1] == [52]


def test_what_an_interruption_left_is_cut_off(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        with path.open("ab") as file:
            file.write(b'{"tokens": 7')
    Corpus(tmp_path, HIDDEN)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_texts_whose_states_a_crash_has_lost_are_cut_off(tmp_path: Path) -> None:
    filled(tmp_path)
    os.truncate(tmp_path / "states.f16", 9 * HIDDEN * 2)
    with (tmp_path / "texts.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    again = Corpus(tmp_path, HIDDEN)
    assert (again.num_texts, again.num_tokens) == (2, 8)
    again.append(states(8, 2), [30, 31], held_out=False)
    assert Corpus(tmp_path, HIDDEN).states()[:, 0].tolist() == list(range(10))
