from __future__ import annotations

from dataclasses import replace

import pytest

from model_server.engine.cost import CostCurve, Costs
from model_server.engine.scheduler import Limits
from tests.benchmarks.capacity.__main__ import enough, most_a_second
from tests.benchmarks.capacity.simulation import Machine, Traffic, simulate

STEP_S = 0.1


def machine(slots: int, *, row_s: float = 0.0, num_cells: int = 8_192) -> Machine:
    """Each decode takes a tenth of a second, and each row what is given."""
    curve = CostCurve({rows: STEP_S + row_s * rows for rows in (1, 512)})
    return Machine(Costs(curve, curve), Limits(slots, 512, 1.0), num_cells)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_one_slot_is_a_queue_with_one_server_and_a_fixed_service_time(utilisation: float) -> None:
    """M/D/1: who comes waits rho s / 2 (1 - rho) in the mean (Pollaczek and Khinchine)."""
    traffic = Traffic(utilisation / STEP_S, 12_000, prompt_tokens=1, answer_tokens=1)
    outcome = simulate(machine(slots=1), 1, traffic)
    mean_s = sum(each.ttft_s for each in outcome.requests) / len(outcome.requests)
    waited_s = utilisation * STEP_S / (2 * (1 - utilisation))
    assert mean_s == pytest.approx(STEP_S + waited_s, rel=0.08)
    assert outcome.utilisation == pytest.approx(utilisation, rel=0.03)


def test_a_lone_request_takes_a_step_a_token() -> None:
    [request] = simulate(machine(slots=4), 2, Traffic(1, 1, 1, answer_tokens=10)).requests
    assert request.ttft_s == pytest.approx(STEP_S)
    assert request.ended - request.arrived == pytest.approx(10 * STEP_S)


def test_slots_decode_together_and_the_rest_waits() -> None:
    crowd = Traffic(rate=1e6, num_requests=8, prompt_tokens=1, answer_tokens=5)
    ttfts = sorted(each.ttft_s for each in simulate(machine(slots=4), 1, crowd).requests)
    assert ttfts[3] < 2.1 * STEP_S
    assert ttfts[4] > 5 * STEP_S


def test_every_server_gets_its_share() -> None:
    outcome = simulate(machine(slots=4), 4, Traffic(40, 400, 1, 5))
    counts = [sum(each.server == number for each in outcome.requests) for number in range(4)]
    assert min(counts) > 80


def test_who_is_placed_by_prefix_computes_less() -> None:
    traffic = Traffic(4, 400, prompt_tokens=256, answer_tokens=4, groups=8, shared_tokens=224)
    costly = machine(slots=8, row_s=0.001, num_cells=2_048)
    by_prefix, by_load = (simulate(costly, 4, traffic, by_prefix=way) for way in (True, False))
    assert by_prefix.busy_s < by_load.busy_s
    assert by_prefix.ttft_s(0.9) < by_load.ttft_s(0.9)


@pytest.mark.parametrize("ttft_s", [3.0, 1e9])
def test_servers_that_fall_behind_are_never_enough(ttft_s: float) -> None:
    """Each answers 40 requests a second, so three can't have 140, however long one may wait."""
    load = Traffic(rate=140, num_requests=100, prompt_tokens=1, answer_tokens=1)
    assert most_a_second(machine(slots=4), load) == pytest.approx(40, rel=0.02)
    tried, fewest = enough(machine(slots=4), load, ttft_s, by_prefix=True)
    assert fewest == 4
    assert min(each.num_servers for each in tried) == 4


def test_a_rate_can_be_too_high_for_any_number_of_servers() -> None:
    load = Traffic(rate=1e6, num_requests=100, prompt_tokens=1, answer_tokens=1)
    assert enough(machine(slots=4), load, 1e9, by_prefix=True) == ([], None)


def test_more_load_needs_more_servers_and_more_servers_are_no_slower() -> None:
    load = Traffic(rate=50, num_requests=400, prompt_tokens=1, answer_tokens=5)
    found = [enough(machine(slots=4), replace(load, rate=rate), 1.0, by_prefix=True)[1]
             for rate in (4, 20, 40, 80)]  # fmt: skip
    assert found == sorted(found, key=lambda each: each or 0)
    assert found[0] == 1
    p95 = [simulate(machine(slots=4), number, load).ttft_s(0.95) for number in (4, 8, 16, 32)]
    assert p95 == sorted(p95, reverse=True)
