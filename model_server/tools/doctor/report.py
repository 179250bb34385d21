"""All that was found out about heads, in plain values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from model_server.medusa.head_file import Calibration
from model_server.tools.doctor.calibration import Errors
from model_server.tools.doctor.fit import Fit
from model_server.tools.doctor.scored import Accuracy
from model_server.tools.doctor.speed import Prediction
from model_server.tools.doctor.trim import Trim
from model_server.tools.doctor.verdict import Verdict


@dataclass(frozen=True)
class Sample:
    """What the heads were held against: greedy answers of the base. `prompts`: empty: built in."""

    prompts: str
    seed: int
    num_prompts: int
    num_tokens: int


@dataclass(frozen=True)
class Table:
    """The calibration of a head file: (heads, bins) shares, and how many candidates each has."""

    accuracy: tuple[tuple[float, ...], ...]
    count: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, table: Calibration) -> Table:
        """The table that a head file holds."""
        return cls(*(tuple(map(tuple, part.tolist())) for part in table))


@dataclass(frozen=True)
class Kept:
    """All that heads shall know: `tokens` by id, and how sure such heads may be."""

    tokens: tuple[int, ...]
    calibration: Table


@dataclass(frozen=True)
class Report:
    """`calibration`: fitted on the whole sample. `predictions`: by rows, with `n_threads`.

    `trims`: what fewer tokens would cost and win. `kept`: those of the trim that was asked for.
    """

    verdict: Verdict
    fit: Fit
    sample: Sample
    accuracy: Accuracy
    calibration_errors: Errors
    calibration: Table
    predictions: tuple[Prediction, ...]
    n_threads: int
    trims: tuple[Trim, ...]
    kept: Kept | None = None


def to_json(report: Report) -> str:
    """Everything, under the names of the fields."""
    return json.dumps(asdict(report), indent=2) + "\n"
