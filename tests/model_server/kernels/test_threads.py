"""The library's own threads, which it uses where llama.cpp computes with one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model_server.llama import kernels
from tests.model_server.kernels import masks
from tests.model_server.kernels.graphs import opened as opened_device
from tests.model_server.kernels.problem import random_problem, solve
from tests.model_server.kernels.product import TYPES, encoded, opened, random_rows


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    kernels.set_own_threads(1)


@pytest.mark.parametrize("num_rows", [1, 7, 70])
def test_products_have_the_same_bits(num_rows: int) -> None:
    data, rows = encoded("q4_0", random_rows(1_000, 768)), random_rows(num_rows, 768, 1)
    found = []
    with opened(TYPES["q4_0"], data, 768, n_threads=1) as matrix:
        for num_threads in (1, 2, 3, 7):
            kernels.set_own_threads(num_threads)
            found += [matrix.times(rows) for _ in range(20)]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_attention_has_the_same_bits() -> None:
    problem = random_problem(masks.tree(9, 700, 1024))
    found = []
    with opened_device(1) as device:
        for num_threads in (1, 2, 5):
            kernels.set_own_threads(num_threads)
            found += [solve(device, problem) for _ in range(5)]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_two_callers_at_once() -> None:
    """One has the threads, the other computes alone meanwhile; neither waits for ever."""
    kernels.set_own_threads(3)
    data, rows = encoded("q8_0", random_rows(500, 512)), random_rows(5, 512, 1)

    def products() -> list[bool]:
        with opened(TYPES["q8_0"], data, 512, n_threads=1) as matrix:
            first = matrix.times(rows)
            return [np.array_equal(matrix.times(rows), first) for _ in range(200)]

    with ThreadPoolExecutor(3) as callers:
        for found in [callers.submit(products) for _ in range(3)]:
            assert all(found.result(timeout=60))


def test_threads_that_have_gone_to_sleep_are_woken() -> None:
    kernels.set_own_threads(4)
    data, rows = encoded("q8_0", random_rows(500, 512)), random_rows(5, 512, 1)
    with opened(TYPES["q8_0"], data, 512, n_threads=1) as matrix:
        first = matrix.times(rows)
        for _ in range(20):
            time.sleep(0.002)
            np.testing.assert_array_equal(matrix.times(rows), first)


def test_they_rest_while_there_is_nothing_to_do() -> None:
    kernels.set_own_threads(4)
    time.sleep(0.05)
    before = sum(os.times()[:2])
    time.sleep(0.5)
    assert sum(os.times()[:2]) - before < 0.1


def test_the_process_ends_with_them() -> None:
    code = "from model_server.llama import kernels; kernels.registry(); kernels.set_own_threads(4)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
