from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from model_server import kept
from model_server.engine.cost import Attention
from model_server.engine.profiler import Measurements, Profiler
from model_server.llama.context import Context, ContextOptions
from model_server.llama.model import Model
from model_server.medusa.heads import HeadOptions, Heads
from tests import random_heads, twin
from tests.random_heads import Kind

BEFORE = Measurements(
    prefill={1: 0.010, 2: 0.010, 4: 0.010, 8: 0.010, 16: 0.010},
    decode={1: 0.010, 3: 0.010, 8: 0.300, 16: 0.010},
    heads={1: {1: 0.001, 4: 0.002}},
    attention=Attention(0.00001, 0.000002),
    new_graph=0.0005,
)


class Clock:
    """Decodes take these times, over and over."""

    def __init__(self, *times_s: float) -> None:
        self._times = times_s
        self._calls = 0
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._times[self.num_decodes % len(self._times)]
        self._calls += 1
        return self._now

    @property
    def num_decodes(self) -> int:
        """Each looks at the clock before and after."""
        return self._calls // 2


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    made = Context(model, ContextOptions(256, 8, 1))
    yield made
    made.close()


def profiler(context: Context, clock: Clock) -> Profiler:
    return Profiler(context, context.vocab_size, clock)


@pytest.mark.parametrize(("now_s", "pace"), [(0.010, 1.0), (0.030, 3.0), (0.008, 0.8)])
def test_the_pace_is_how_much_longer_decodes_take(
    context: Context, now_s: float, pace: float
) -> None:
    clock = Clock(now_s)
    assert profiler(context, clock).pace(BEFORE) == pytest.approx(pace)
    assert clock.num_decodes == 1 + 4 * 2


def test_one_stall_is_not_the_pace(context: Context) -> None:
    """The first decode, then two at each of four points: all of the third are slow."""
    clock = Clock(*[0.010] * 5, *[0.500] * 2, *[0.010] * 2)
    assert profiler(context, clock).pace(BEFORE) == pytest.approx(1.0)


def test_what_was_measured_in_a_bad_hour_is_no_measure(context: Context) -> None:
    assert profiler(context, Clock(0.006)).pace(BEFORE) is None
    clock = Clock(*[0.010] * 3, *[0.005] * 2, *[0.010] * 4)
    assert profiler(context, clock).pace(BEFORE) is None


def test_a_point_that_takes_long_is_not_compared(context: Context) -> None:
    """Of 8 rows that take 300 ms with logits, 3 rows are the most that don't."""
    compared: list[int] = []

    class Noting(Profiler):
        def _time(self, rows: int, output: bool, behind: int = 0) -> float:
            compared.append(rows)
            return super()._time(rows, output, behind)

    Noting(context, context.vocab_size, Clock(0.010)).pace(BEFORE)
    assert compared == [1, 1, 1, 8, 8, 1, 1, 3, 3]


def test_costs_are_those_measured_at_the_pace() -> None:
    costs = BEFORE.costs(2.0)
    assert costs.prefill.seconds(4) == pytest.approx(0.020)
    assert costs.decode.seconds(16) == pytest.approx(0.600)  # no less than 8 rows
    assert costs.heads.seconds(1, 4) == pytest.approx(0.004)
    at_length = 1_000 * (2 * 0.00002 + 3 * 0.000004)
    assert costs.decode.seconds(3, 1_000.0, 2) == pytest.approx(0.020 + at_length)


def test_measurements_survive_being_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept.keep("costs", {}, asdict(BEFORE))
    assert kept.recall("costs", {}, Measurements) == BEFORE


def test_no_position_is_measured_that_the_model_lacks(tmp_path: Path) -> None:
    """llama.cpp ends the process over it where positions are learned, as GPT-2's are."""
    path = twin.write(tmp_path / "short.gguf", shape=replace(twin.TINY, context=64))
    model = Model(path, 0)
    short = Context(model, ContextOptions(256, 8, 1))
    measured = profiler(short, Clock(0.010)).measure(output=False)
    short.close()
    model.close()
    assert max(measured) == 64


def test_all_is_measured(context: Context, model: Model, tmp_path: Path) -> None:
    kind = Kind(hidden=model.hidden_size, vocab_size=model.vocab.size)
    path = random_heads.write(tmp_path / "heads.gguf", kind)
    heads = Heads(path, model, HeadOptions(n_threads=1))
    found = Profiler(context, context.vocab_size).measure_all(heads)
    heads.close()
    assert {1, 2, 4, 8, 16, 32, 64, 128, 256} >= found.prefill.keys() >= {1}
    assert found.decode.keys() >= {1}
    assert found.heads.keys() == set(range(1, heads.num_heads + 1))
    assert all(seconds > 0 for seconds in found.decode.values())
    assert context.length(0) == 0


def test_attention_is_what_rows_take_longer_behind_many_cells(context: Context) -> None:
    """128 copied cells, half of the pool: a row takes 2 ms more there, eight take 9."""
    times_s = {(0, 1): 0.0, (16, 1): 0.012, (16, 8): 0.019}

    class Timed(Profiler):
        def _time(self, rows: int, output: bool, behind: int = 0) -> float:
            assert self._context.length(0) == behind
            super()._time(rows, output, behind)
            return times_s[behind, rows]

    found = Timed(context, context.vocab_size).measure_attention({1: 0.010, 8: 0.010})
    assert found.row_s == pytest.approx(0.007 / 7 / 128)
    assert found.request_s == pytest.approx(0.001 / 128)
    assert context.length(0) == 0


def test_attention_that_would_take_long_to_measure_is_learnt_later(context: Context) -> None:
    clock = Clock(0.010)
    found = profiler(context, clock).measure_attention({1: 0.5, 8: 0.6})
    assert (found, clock.num_decodes) == (Attention(), 0)
