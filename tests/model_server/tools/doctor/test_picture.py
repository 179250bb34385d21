from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model_server.errors import SettingError
from model_server.tools.doctor import picture
from model_server.tools.doctor.report import Report


def size(path: Path) -> tuple[int, ...]:
    """Width and height of a PNG, from its first chunk."""
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert raw[12:16] == b"IHDR"
    return struct.unpack(">II", raw[16:24])


@pytest.mark.parametrize("num_heads", [1, 5, 16])
def test_the_picture_is_a_png_for_a_page(num_heads: int, report: Report, tmp_path: Path) -> None:
    alone = (report.accuracy.alone * 4)[:num_heads]
    path = tmp_path / "report.png"
    picture.draw(replace(report, accuracy=replace(report.accuracy, alone=alone)), path)
    width, height = size(path)
    assert (width, height) == (1_200, 480)
    assert 10_000 < path.stat().st_size < 300_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_matplotlib_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    picture.refuse_without_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match="needs matplotlib: pip install matplotlib"):
        picture.refuse_without_matplotlib()
