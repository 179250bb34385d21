from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model_server.errors import HeadFileError
from model_server.llama.gguf import GgufHeader
from model_server.llama.model import Model
from model_server.medusa.head_file import MATRIX_TYPES
from model_server.medusa.heads import HeadOptions, Heads, Proposals
from model_server.medusa.limits import MAX_BLOCKS, MAX_HEADS
from model_server.speculation.confidence import HeadConfidence
from tests import gguf_file, heads_reference, random_heads, random_model
from tests.model_server.medusa.conftest import WriteHeads
from tests.random_heads import HIDDEN, VOCAB, Kind

Floats = npt.NDArray[np.float32]
OpenHeads = Callable[..., Heads]

# ggml rounds the hidden states as it multiplies: to F16 beside F16, to 8 bits beside quants.
TOLERANCE = dict.fromkeys(MATRIX_TYPES, 0.3) | {"F32": 2e-5, "F16": 0.02, "BF16": 0.1}
OPTIONS = HeadOptions(n_threads=1)


@pytest.fixture
def open_heads(base: Model) -> Iterator[OpenHeads]:
    opened: list[Heads] = []

    def open_(path: Path, options: HeadOptions = OPTIONS, on: Model = base) -> Heads:
        opened.append(Heads(path, on, options))
        return opened[-1]

    yield open_
    for heads in opened:
        heads.close()


def states(num_rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_rows, HIDDEN), dtype=np.float32)


def drawn(num_rows: int) -> list[int]:
    """Tokens, a different one for each row."""
    return [(37 * row + 5) % VOCAB for row in range(num_rows)]


def assert_agrees(
    found: Proposals,
    expected: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]],
    tolerance: float,
) -> None:
    """The proposed tokens have the reference's log probabilities, and no others have higher."""
    log_probs, tokens = expected
    column = np.full(VOCAB, -1)
    column[tokens] = np.arange(len(tokens))
    k = found.ids.shape[-1]
    assert (column[found.ids] >= 0).all()
    at_ids = np.take_along_axis(log_probs, column[found.ids], axis=-1)
    best = -np.sort(-log_probs, axis=-1)[..., :k]
    np.testing.assert_allclose(found.log_probs, at_ids, atol=tolerance, rtol=1e-6)
    np.testing.assert_allclose(found.log_probs, best, atol=tolerance, rtol=1e-6)
    assert (np.diff(found.log_probs, axis=-1) <= 0).all()
    assert (np.diff(np.sort(found.ids, axis=-1), axis=-1) > 0).all()


@pytest.mark.parametrize("file_type", TOLERANCE)
@pytest.mark.parametrize("num_blocks", [0, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_compute_the_formula(
    write_heads: WriteHeads, open_heads: OpenHeads, file_type: str, num_blocks: int, bias: bool
) -> None:
    path = write_heads(Kind(file_type, num_blocks=num_blocks, bias=bias))
    found = open_heads(path).propose(states(3), drawn(3), 3, 10)
    assert found.ids.shape == found.log_probs.shape == (3, 3, 10)
    assert found.ids.dtype == np.int32
    assert found.log_probs.dtype == np.float32
    expected = heads_reference.log_probs(path, states(3), 3)
    assert_agrees(found, expected, TOLERANCE[file_type])


@pytest.mark.parametrize("file_type", TOLERANCE)
@pytest.mark.parametrize("base_type", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K"])
def test_heads_may_know_the_drawn_token(
    write_heads: WriteHeads,
    open_heads: OpenHeads,
    tmp_path: Path,
    file_type: str,
    base_type: str,
) -> None:
    """The base's embedding of it, whatever type that is stored in."""
    base_path = write_base(tmp_path / "base.gguf", base_type, tied=False)
    path = write_heads(Kind(file_type, num_blocks=1, token=True))
    with closing(Model(base_path, 0)) as base:
        heads = open_heads(path, on=base)
        found = heads.propose(states(5), drawn(5), 3, 10)
        others = heads.propose(states(5), drawn(6)[1:], 3, 10)
    assert (found.ids != others.ids).any(axis=-1).all()
    expected = heads_reference.log_probs(path, states(5), 3, base_path, drawn(5))
    assert_agrees(found, expected, TOLERANCE[file_type])


@pytest.mark.parametrize("num_heads", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 16])
def test_any_number_of_heads_and_rows(
    write_heads: WriteHeads, open_heads: OpenHeads, num_heads: int, num_rows: int
) -> None:
    path = write_heads(Kind(num_heads=5, num_blocks=1))
    found = open_heads(path).propose(states(num_rows), drawn(num_rows), num_heads, 4)
    assert found.ids.shape == (num_rows, num_heads, 4)
    expected = heads_reference.log_probs(path, states(num_rows), num_heads)
    assert_agrees(found, expected, TOLERANCE["F32"])


def test_the_largest_file_fits_a_graph(write_heads: WriteHeads, open_heads: OpenHeads) -> None:
    path = write_heads(Kind(num_heads=MAX_HEADS, num_blocks=MAX_BLOCKS))
    found = open_heads(path).propose(states(2), drawn(2), MAX_HEADS, 3)
    expected = heads_reference.log_probs(path, states(2), MAX_HEADS)
    assert_agrees(found, expected, 10 * TOLERANCE["F32"])


@pytest.mark.parametrize("base_type", ["F32", "Q4_0", "F32 tied"])
@pytest.mark.parametrize("trim", [0, 100])
def test_a_shared_output_matrix_is_the_base_s(
    write_heads: WriteHeads, open_heads: OpenHeads, tmp_path: Path, base_type: str, trim: int
) -> None:
    file_type = base_type.split(maxsplit=1)[0]
    base_path = write_base(tmp_path / "base.gguf", file_type, tied="tied" in base_type)
    base = Model(base_path, 0)
    path = write_heads(Kind(shared=True, num_heads=2, trim=trim))
    found = open_heads(path, on=base).propose(states(3), drawn(3), 2, 5)
    base.close()
    expected = heads_reference.log_probs(path, states(3), 2, base_path)
    assert_agrees(found, expected, TOLERANCE[file_type])


def write_base(path: Path, file_type: str, *, tied: bool) -> Path:
    """The random model; when tied, its embeddings are the output matrix too."""
    tensors = random_model.tensors(random_model.SHAPE, file_type, seed=0)
    kept = (tensor for tensor in tensors if not (tied and tensor.name == "output.weight"))
    return gguf_file.write(path, random_model.SHAPE, file_type, kept)


@pytest.mark.parametrize(("trim", "k"), [(100, 10), (7, 10), (1, 3)])
def test_a_trimmed_vocabulary_gives_its_own_tokens(
    write_heads: WriteHeads, open_heads: OpenHeads, trim: int, k: int
) -> None:
    path = write_heads(Kind(trim=trim))
    found = open_heads(path).propose(states(2), drawn(2), 3, k)
    assert found.ids.shape == (2, 3, min(k, trim))
    assert_agrees(found, heads_reference.log_probs(path, states(2), 3), TOLERANCE["F32"])


def test_equal_tokens_come_lower_id_first(open_heads: OpenHeads, write_heads: WriteHeads) -> None:
    path = write_heads(Kind(trim=6, num_blocks=0))
    zeros = np.zeros((1, HIDDEN), np.float32)
    found = open_heads(path).propose(zeros, [0], 1, 6)
    assert found.ids[0, 0].tolist() == sorted(found.ids[0, 0].tolist())
    np.testing.assert_allclose(found.log_probs, -np.log(6), rtol=1e-6)


def test_a_sure_head_has_finite_log_probabilities(
    write_heads: WriteHeads, open_heads: OpenHeads
) -> None:
    path = write_heads(Kind(num_blocks=0))
    loud = states(1) * np.float32(100)
    found = open_heads(path).propose(loud, [0], 3, VOCAB)
    assert np.isfinite(found.log_probs).all()
    assert found.log_probs.min() < -200
    np.testing.assert_allclose(np.exp(found.log_probs).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("token", [False, True])
def test_a_row_does_not_depend_on_its_company(
    write_heads: WriteHeads, open_heads: OpenHeads, file_type: str, token: bool
) -> None:
    heads = open_heads(write_heads(Kind(file_type, num_blocks=2, token=token)))
    alone = [heads.propose(states(16)[i : i + 1], drawn(16)[i : i + 1], 3, 10) for i in range(16)]
    for num_rows in (2, 3, 16):
        together = heads.propose(states(16)[:num_rows], drawn(num_rows), 3, 10)
        for i in range(num_rows):
            assert (together.ids[i] == alone[i].ids[0]).all()
            assert (together.log_probs[i] == alone[i].log_probs[0]).all()


def test_a_row_hardly_depends_on_its_company_in_f32(
    write_heads: WriteHeads, open_heads: OpenHeads
) -> None:
    heads = open_heads(write_heads(Kind("F32", num_blocks=2)))
    together = heads.propose(states(16), drawn(16), 3, 10)
    alone = [
        heads.propose(states(16)[i : i + 1], drawn(16)[i : i + 1], 3, 10).log_probs
        for i in range(16)
    ]
    np.testing.assert_allclose(together.log_probs, np.concatenate(alone), atol=2e-5, rtol=0)


def test_threads_change_nothing(write_heads: WriteHeads, open_heads: OpenHeads) -> None:
    path = write_heads(Kind("Q8_0"))
    one, three = (
        open_heads(path, HeadOptions(n)).propose(states(3), drawn(3), 3, 5) for n in (1, 3)
    )
    assert (one.ids == three.ids).all()
    assert (one.log_probs == three.log_probs).all()


def test_only_the_first_heads_are_used(write_heads: WriteHeads, open_heads: OpenHeads) -> None:
    path = write_heads(Kind(num_heads=4, calibrated=True))
    every, two = open_heads(path), open_heads(path, HeadOptions(1, max_heads=2))
    assert (every.num_heads, two.num_heads) == (4, 2)
    all_, first = every.propose(states(2), drawn(2), 4, 5), two.propose(states(2), drawn(2), 2, 5)
    assert (all_.ids[:, :2] == first.ids).all()
    assert every.calibration is not None
    assert two.calibration is not None
    for whole, part in zip(every.calibration, two.calibration, strict=True):
        assert (whole[:2] == part).all()
    confidence = HeadConfidence(two.num_heads, two.calibration)
    assert confidence.probabilities(first.log_probs).shape == (2, 2, 5)


def test_heads_without_calibration_say_so(write_heads: WriteHeads, open_heads: OpenHeads) -> None:
    assert open_heads(write_heads(Kind())).calibration is None


def test_alternating_shapes_give_the_same_answers(
    write_heads: WriteHeads, open_heads: OpenHeads
) -> None:
    heads = open_heads(write_heads(Kind()))
    shapes = [(1, 3, 5), (4, 1, 2), (2, 2, 10)]
    first, second = (
        [heads.propose(states(r), drawn(r), h, k) for r, h, k in shapes] for _ in range(2)
    )
    for one, two in zip(first, second, strict=True):
        assert (one.ids == two.ids).all()
        assert (one.log_probs == two.log_probs).all()


def test_closing_and_rebuilding_leave_no_memory_behind(tmp_path: Path, base: Model) -> None:
    path = random_heads.write(tmp_path / "heads.gguf", Kind(num_heads=5, num_blocks=2))

    def use(times: int) -> float:
        for _ in range(times):
            heads = Heads(path, base, OPTIONS)
            for num_rows in range(1, 9):
                heads.propose(states(num_rows), drawn(num_rows), 5, 10)
            heads.close()
        return _resident_mb()

    before = use(5)
    assert use(50) - before < 4  # one file has 5 MB


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.parametrize(
    "name", ["head.1.output.weight", "head.1.block.0.weight", "head.1.token.weight"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_heads_that_give_no_numbers_are_refused(
    write_heads: WriteHeads, open_heads: OpenHeads, name: str, value: float
) -> None:
    path = write_heads(Kind("F32", 2, token=True))
    header = GgufHeader(path)
    offset = header.tensors[name].offset
    header.close()
    with path.open("r+b") as file:
        file.seek(offset + 4 * 1_000)
        file.write(np.float32(value).tobytes())
    with pytest.raises(HeadFileError, match="head 1 gives no numbers: its weights are damaged"):
        open_heads(path)
