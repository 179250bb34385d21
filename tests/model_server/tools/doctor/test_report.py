from __future__ import annotations

import json

from model_server.tools.doctor.report import Report, to_json


def test_json_holds_everything(report: Report) -> None:
    found = json.loads(to_json(report))
    assert found.keys() == report.__dataclass_fields__.keys()
    assert found["verdict"]["sentence"] == report.verdict.sentence
    assert found["accuracy"]["alone"][0] == list(report.accuracy.alone[0])
    assert [each["rows"] for each in found["predictions"]] == [1, 2, 3, 4, 6, 8, 12, 16, 32, 64]
    assert [len(row) for row in found["calibration"]["count"]] == [24] * 5
    assert found["calibration_errors"]["stored"] is None
