from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray

from model_server.llama import ggml, matmuls
from model_server.llama.device import Device
from model_server.llama.matmuls import Matrix
from model_server.tools.gguf_writer import encode
from tests import twin

Spoil = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# What bases and heads are made of, but for types that need an importance matrix.
TYPES = (
    *(Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q5_1, Type.Q4_0, Type.Q4_1),
    *(Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.Q3_K, Type.Q2_K, Type.IQ4_NL, Type.IQ4_XS),
)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    opened = Device(n_threads=2)
    yield opened
    opened.close()


def matrix(type_: Type, num_rows: int, num_values: int) -> Matrix:
    values = np.random.default_rng(0).standard_normal((num_rows, num_values), np.float32)
    stored = encode(values, type_).view(np.uint8)
    return Matrix(type_, stored, dequantize(stored, type_))


def rows(num_rows: int, num_values: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((num_rows, num_values), np.float32)


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
@pytest.mark.parametrize("num_rows", [96, 99])
def test_every_place_agrees_with_numpy_within_half_of_what_is_allowed(
    device: Device, type_: Type, num_rows: int
) -> None:
    made = matrix(type_, num_rows, 512)
    num_places = 0
    for x in (rows(number, 512) for number in (1, 2, 3, 8, 16, 64)):
        for place in device.places():
            found = matmuls.multiply(device, made, x, place)
            if found is not None:
                num_places += 1
                assert matmuls.error(found, made, x) <= matmuls.allowed(type_.name) / 2
    assert num_places >= 6


def test_layouts_of_the_processors_own_are_tried(device: Device) -> None:
    *own, _ = device.places()
    if not own:
        pytest.skip("llama.cpp repacks nothing on this processor")
    fitting, odd = matrix(Type.Q4_0, 64, 512), matrix(Type.Q4_0, 63, 512)
    found = [matmuls.multiply(device, fitting, rows(2, 512), place) for place in own]
    assert any(each is not None for each in found)
    assert [matmuls.multiply(device, odd, rows(2, 512), place) for place in own] == [None] * len(
        own
    )


@pytest.mark.parametrize("type_", [Type.F32, Type.Q8_0, Type.Q4_K], ids=lambda type_: type_.name)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found * 0,
        lambda found: found * np.nan,
        lambda found: found * 1.2,
        lambda found: np.roll(found, 1, axis=1),
        lambda found: found[::-1],
    ],
    ids=["zeros", "not a number", "a wrong scale", "other columns", "other rows"],
)
def test_wrong_products_are_told(device: Device, type_: Type, spoil: Spoil) -> None:
    made, x = matrix(type_, 64, 512), rows(16, 512)
    found = matmuls.multiply(device, made, x, device.places()[-1])
    assert found is not None
    assert matmuls.error(found, made, x) <= matmuls.allowed(type_.name)
    assert not matmuls.error(spoil(found), made, x) <= matmuls.allowed(type_.name)


def test_a_block_that_is_left_out_is_told() -> None:
    """One of 128, of one row."""
    made, x = matrix(Type.Q8_0, 64, 4_096), rows(64, 4_096)
    found = x @ made.values.T
    found[:, 7] -= x[:, :32] @ made.values[7, :32]
    assert matmuls.error(found, made, x) > matmuls.allowed("Q8_0")


def test_one_matrix_of_every_kind_is_taken(tmp_path: Path) -> None:
    path = twin.write(tmp_path / "twin.gguf", file_type="Q4_K")
    found = [(ggml.type_name(each.type), each.values.shape) for each in matmuls.matrices(path)]
    assert len(found) == len(set(found))
    assert {("Q4_K", (64, 512))} <= set(found)
    for each in matmuls.matrices(path):
        assert each.values.any()


def test_a_good_build_passes(twin_q8_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert matmuls.main(str(twin_q8_path)) == 0
    assert [line.split(", ")[1] for line in capsys.readouterr().out.splitlines()[:4]] == [
        f"{number} at once" for number in (1, 2, 16, 64)
    ]


def test_a_file_without_a_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="GGUF"):
        matmuls.main(str(tmp_path / "x.gguf"))
