"""Products of tiles, by the processor's own or the emulator's, against the sums written out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.amx.tiles import Tiles, are_native, configuration, processor_flags

Array = npt.NDArray[np.generic]

INT8 = {
    "tdpbssd": ("i1", "i1"),
    "tdpbsud": ("i1", "u1"),
    "tdpbusd": ("u1", "i1"),
    "tdpbuud": ("u1", "u1"),
}
# Rows of A, products of four bytes in each, columns of B.
SIZES = [(16, 16, 16), (5, 3, 7), (1, 16, 2)]


def dot_product(tiles: Tiles, instruction: str, a: Array, b: Array, c: Array) -> Array:
    """C + A.B by the tiles: A [M, 4K bytes], B [K, N, 4 bytes], C [M, N] of four bytes."""
    num_rows, depth = a.shape[0], b.shape[0]
    width = c.shape[1] * 4
    shapes = {5: (num_rows, width), 6: (num_rows, depth * 4), 7: (depth, width)}
    steps = ["ldtilecfg config(%rip)"]
    for tile, name, stride in ((5, "c", width), (6, "a", depth * 4), (7, "b", width)):
        steps += [f"mov ${stride}, %r9d", f"tileloadd {name}(,%r9,1), %tmm{tile}"]
    steps += [f"{instruction} %tmm7, %tmm6, %tmm5", f"mov ${width}, %r9d"]
    steps += ["tilestored %tmm5, out(,%r9,1)"]
    memory = {"config": configuration(shapes), "a": a.tobytes(), "b": b.tobytes(), "c": c.tobytes()}
    ran = tiles.run(memory, PROGRAM=";".join(steps))
    assert ran.code == 0
    return np.frombuffer(ran.out[: c.nbytes], c.dtype).reshape(c.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("instruction", INT8)
def test_products_of_bytes(tiles: Tiles, instruction: str, size: tuple[int, int, int]) -> None:
    """Every value of a byte, and sums that wrap around."""
    rng, (m, k, n) = np.random.default_rng(sum(size)), size
    a = rng.integers(0, 256, (m, k, 4), "u1").view(INT8[instruction][0])
    b = rng.integers(0, 256, (k, n, 4), "u1").view(INT8[instruction][1])
    c = rng.integers(-(2**31), 2**31, (m, n), "i4")
    c[0, :2] = 2**31 - 1, -(2**31)
    exact = c + np.einsum("mki,kni->mn", a.astype("i8"), b.astype("i8"))
    got = dot_product(tiles, instruction, a.reshape(m, -1), b, c)
    np.testing.assert_array_equal(got, exact.astype("i4"))


@pytest.fixture
def bf16_tiles(tiles: Tiles) -> Tiles:
    if not are_native() and "fma" not in processor_flags():
        pytest.skip("this processor has neither AMX nor the fused products that the emulator needs")
    return tiles


def bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return np.asarray(values.view("u4") >> 16, dtype="u2")


def widened(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    return (halves.astype("u4") << 16).view("f4").astype("f8")


def fused(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], c: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """a * b + c, rounded once: the sum of two doubles, to odd where inexact, then to a float."""
    product, wide = a * b, c.astype("f8")
    total = product + wide
    back = total - product
    lost = (product - (total - back)) + (wide - back)
    is_even = total.view("i8") % 2 == 0
    toward = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where((lost != 0) & is_even, np.nextafter(total, toward), total)
    return np.asarray(odd, dtype="f4")


@pytest.mark.parametrize("size", SIZES)
def test_products_of_bf16(bf16_tiles: Tiles, size: tuple[int, int, int]) -> None:
    """Sums of even and of odd elements, in order, rounded at each step, added at the end."""
    rng, (m, k, n) = np.random.default_rng(sum(size)), size
    a = bf16(np.ldexp(rng.standard_normal((m, k, 2), "f4"), rng.integers(-9, 9, (m, k, 2), "i4")))
    b = bf16(rng.standard_normal((k, n, 2), "f4"))
    c = rng.standard_normal((m, n), "f4")
    sums = np.zeros((m, n, 2), "f4")
    for step in range(k):
        sums = fused(widened(a)[:, step, None], widened(b)[None, step], sums)
    exact = c + (sums[:, :, 0] + sums[:, :, 1])
    got = dot_product(bf16_tiles, "tdpbf16ps", a.reshape(m, -1), b, c)
    np.testing.assert_array_equal(got.view("u4"), exact.view("u4"))


TINY = 2.0**-127  # a denormal, of bf16 and of a float


@pytest.mark.parametrize(
    ("pairs", "before", "after"),
    [
        pytest.param([(TINY, 2.0**20)], 0, 0, id="a denormal operand is zero"),
        pytest.param([(2.0**-70, 2.0**-60)], 0, 0, id="a denormal result becomes zero"),
        pytest.param([(0, 0)], TINY, 0, id="a denormal in C is zero"),
        pytest.param(
            [(2.0**-60, 2.0**-60), (2.0**-70, 2.0**-60)],
            *(0, 2.0**-120 + 2.0**-130),
            id="a denormal product counts before it is added",
        ),
        pytest.param([(1, 1), (2.0**-24, 1)], 0, 1, id="half a unit rounds to even: down"),
        pytest.param(
            [(1 + 2.0**-7, 1), (2.0**-16, 2.0**-7), (2.0**-24, 1)],
            *(0, 1 + 2.0**-7 + 2.0**-22),
            id="half a unit rounds to even: up",
        ),
        pytest.param(
            [(2.0**100, 2.0**100), (2.0**100, -(2.0**100))], 0, np.inf, id="overflow stays"
        ),
    ],
)
def test_corners_of_bf16(
    bf16_tiles: Tiles, pairs: list[tuple[float, float]], before: float, after: float
) -> None:
    """Pairs are multiplied and added in order; the odd elements are zero."""
    given = np.zeros((len(pairs), 2, 2), "f4")
    given[:, 0] = pairs
    a, b = bf16(given[None, :, :, 0].copy()), bf16(given[:, None, :, 1].copy())
    got = dot_product(bf16_tiles, "tdpbf16ps", a.reshape(1, -1), b, np.full((1, 1), before, "f4"))
    assert got[0, 0] == np.float32(after)
