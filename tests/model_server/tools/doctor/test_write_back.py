"""A calibration goes into a head file; nothing else changes, and nothing is ever left half done."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType

from model_server.errors import HeadFileError
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.speculation.confidence import HeadConfidence
from model_server.tools.doctor.report import Report
from model_server.tools.doctor.verdict import Verdict
from model_server.tools.doctor.write_back import write_back


@pytest.fixture
def path(twin_heads_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(twin_heads_path, tmp_path / "heads.gguf"))


def tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes())
        for t in GGUFReader(path).tensors
    }


def values(path: Path) -> dict[str, tuple[object, list[GGUFValueType]]]:
    """All but the counts of the header."""
    fields = GGUFReader(path).fields.items()
    return {n: (f.contents(), f.types) for n, f in fields if not n.startswith("GGUF.")}


def test_a_file_gets_its_calibration_and_its_base(path: Path, report: Report, model: Model) -> None:
    before, said = tensors(path), values(path)
    path.chmod(0o640)
    assert write_back(path, report) == f"{path} holds this calibration now."
    after = tensors(path)
    for name in ("accuracy", "count"):
        del after[f"calibration.{name}"]
    assert after == before
    said["medusa.base_fingerprint"] = (model.base_fingerprint, [GGUFValueType.STRING])
    assert values(path) == said
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]
    table = head_file.read(path, model).calibration
    assert table is not None
    np.testing.assert_allclose(table[0], report.calibration.accuracy, atol=1e-6)
    np.testing.assert_array_equal(table[1], report.calibration.count)
    # The commonest bin of head 0 is believed from the start.
    best = int(table[1][0].argmax())
    confidence = HeadConfidence(5, table)
    log_odds = -7 + 0.5 * (best + 0.5)
    said_by_head = np.full((5, 1), -np.log1p(np.exp(-log_odds)), np.float32)
    found = confidence.probabilities(said_by_head)[0, 0]
    assert found == pytest.approx(float(table[0][0, best]), abs=0.02)


def test_a_second_calibration_takes_the_place_of_the_first(path: Path, report: Report) -> None:
    write_back(path, report)
    first = tensors(path)
    table = report.calibration
    more = replace(table, count=tuple(tuple(2 * n for n in row) for row in table.count))
    write_back(path, replace(report, calibration=more))
    second = tensors(path)
    assert second.keys() == first.keys()
    assert [name for name in first if first[name] != second[name]] == ["calibration.count"]


def test_values_for_people_stay(path: Path, report: Report) -> None:
    """Of every type, in a file with an alignment of its own."""
    reader = GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("more.gguf"), "medusa")
    for name, (value, types) in values(path).items():
        if name != "general.architecture":
            writer.add_key_value(name, value, types[0])
    writer.add_custom_alignment(64)
    writer.add_array("general.tags", ["medusa", "schön"])
    writer.add_array("training.losses", [1.5, 0.25])
    writer.add_int64("training.tokens", -(2**40))
    writer.add_float64("training.rate", 1e-3)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = path.with_name("more.gguf")
    said, before = values(path), tensors(path)
    write_back(path, report)
    named = values(path)
    assert named.pop("medusa.base_fingerprint") != said.pop("medusa.base_fingerprint")
    assert named == said
    assert {name: tensor for name, tensor in tensors(path).items() if name in before} == before


@pytest.mark.parametrize(
    ("made_for", "grade", "sentence"),
    [
        ("another base", "good", "belongs to another base"),
        ("unknown", "useless", "its heads are of no use to this base"),
    ],
)
def test_a_file_that_does_not_belong_here_stays(
    made_for: Literal["another base", "unknown"],
    grade: Literal["good", "useless"],
    sentence: str,
    path: Path,
    report: Report,
) -> None:
    before = path.read_bytes()
    verdict = Verdict(grade, pays=False, sentence="")
    found = replace(report, fit=replace(report.fit, made_for=made_for), verdict=verdict)
    assert sentence in write_back(path, found)
    assert path.read_bytes() == before


def test_a_base_without_a_fingerprint_stays_unknown(path: Path, report: Report) -> None:
    fit = replace(report.fit, base_fingerprint=None)
    write_back(path, replace(report, fit=fit))
    assert values(path)["medusa.base_fingerprint"][0] == "unknown"


def test_a_link_stays_a_link(path: Path, report: Report) -> None:
    link = path.with_name("link.gguf")
    link.symlink_to(path)
    write_back(link, report)
    assert link.is_symlink()
    assert "calibration.count" in tensors(path)


def test_an_interrupted_run_leaves_the_file_as_it_was(
    path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment: all is written, and nothing replaced yet."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_back(path, report)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_leaves_the_file_as_it_was(path: Path, report: Report) -> None:
    before = path.read_bytes()
    path.with_name(path.name + ".part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_back(path, report)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_spoiled_meanwhile_is_refused(path: Path, report: Report) -> None:
    path.write_bytes(b"spoiled" * 99)
    with pytest.raises(HeadFileError, match="can't be written anew: GGUF magic invalid"):
        write_back(path, report)
