from __future__ import annotations

from typing import Any

import pytest

from model_server.llama.batch import LlamaBatch


def test_rows_reach_the_struct_that_llama_cpp_reads() -> None:
    batch = LlamaBatch(8, max_seqs_per_row=3)
    assert batch.add(7, 4, [2, 5, 6], output=True) == 0
    assert batch.add(8, 5, [2], output=False) == 1
    batch.seal()
    struct: Any = batch.struct
    assert [struct.token[i] for i in range(2)] == [7, 8]
    assert [struct.pos[i] for i in range(2)] == [4, 5]
    assert [struct.n_seq_id[i] for i in range(2)] == [3, 1]
    assert [struct.seq_id[0][i] for i in range(3)] == [2, 5, 6]
    assert struct.seq_id[1][0] == 2
    assert [struct.logits[i] for i in range(2)] == [1, 0]


def test_a_span_is_consecutive_rows_without_outputs() -> None:
    batch = LlamaBatch(8)
    batch.add(1, 0, [9], output=True)
    batch.add_span([4, 5, 6], 10, 3)
    assert batch.num_rows == 4
    batch.seal()
    struct: Any = batch.struct
    assert [struct.token[i] for i in range(1, 4)] == [4, 5, 6]
    assert [struct.pos[i] for i in range(1, 4)] == [10, 11, 12]
    assert [struct.seq_id[i][0] for i in range(4)] == [9, 3, 3, 3]
    assert [struct.logits[i] for i in range(4)] == [1, 0, 0, 0]


def test_a_cleared_batch_forgets_its_outputs() -> None:
    batch = LlamaBatch(2)
    batch.add(1, 0, [0], output=True)
    batch.clear()
    assert batch.num_rows == 0
    batch.add_span([5], 3, 1)
    batch.seal()
    struct: Any = batch.struct
    assert (struct.logits[0], struct.pos[0]) == (0, 3)


def test_a_full_batch_takes_no_more() -> None:
    batch = LlamaBatch(1)
    batch.add(1, 0, [0], output=True)
    with pytest.raises(AssertionError, match="more rows than a batch holds"):
        batch.add(1, 1, [0], output=True)
    with pytest.raises(AssertionError, match="more rows than a batch holds"):
        batch.add_span([1, 2], 1, 0)
