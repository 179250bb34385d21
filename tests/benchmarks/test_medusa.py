"""Which servers of the classic tables run at the same time."""

from __future__ import annotations

import pytest

from tests.benchmarks import medusa
from tests.benchmarks.servers import Side


def pair(name: str, needed: int) -> medusa.Pair:
    sides = [Side(f"{name}-{how}", "", "", ()) for how in ("off", "on")]
    return [(side, needed) for side in sides]


KINDS = ("F16", "quantized", "unbatched")
ONE_BY_ONE = [f"{kind}-{how}" for kind in KINDS for how in ("off", "on")]


@pytest.mark.parametrize(
    ("memory", "groups"),
    [
        (100, ["F16-off F16-on quantized-off quantized-on unbatched-off unbatched-on"]),
        (31, ["F16-off F16-on", "quantized-off quantized-on unbatched-off unbatched-on"]),
        (29, ["F16-off", "F16-on", "quantized-off quantized-on unbatched-off unbatched-on"]),
        (12, ["F16-off", "F16-on", "quantized-off quantized-on", "unbatched-off unbatched-on"]),
        (7, ONE_BY_ONE),
    ],
)
def test_those_that_fit_run_together_and_pairs_before_all(memory: int, groups: list[str]) -> None:
    pairs = [pair("F16", 15), pair("quantized", 5), pair("unbatched", 5)]
    found = medusa.together(pairs, memory)
    assert [" ".join(side.name for side in group) for group in found] == groups
