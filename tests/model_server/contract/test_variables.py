import itertools
from difflib import SequenceMatcher

import pytest

from api.config import Settings
from model_server.config import ModelServerSettings
from model_server.contract.variables import ALIKE, almost

OURS = [*Settings.model_fields, *ModelServerSettings.model_fields]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("N_PARALEL", "N_PARALLEL"),
        ("MAX_WAIT_TIM", "MAX_WAIT_TIME"),
        ("BATCH_SIZES", "BATCH_SIZE"),
        ("MODEL_SERVER_URL", "MODEL_SERVER_URLS"),
        ("MEDUSA_PAHT", "MEDUSA_PATH"),
        ("PROT", "PORT"),
    ],
)
def test_what_is_almost_a_setting_is_named(given: str, meant: str) -> None:
    [sentence] = almost(OURS, {given: "1"})
    assert sentence == f"{given} is no setting, and is ignored: is {meant} meant?"


def test_settings_and_other_programs_variables_are_not() -> None:
    others = ("PATH", "HOME", "HOSTNAME", "LOGNAME", "HTTP_PROXY", "OMP_NUM_THREADS", "PWD")
    assert almost(OURS, dict.fromkeys([*others, *(name.upper() for name in OURS)], "1")) == []


def test_no_setting_is_almost_another() -> None:
    """Else one tier would warn of the other's."""
    names = sorted({name.upper() for name in OURS})
    ratios = {
        (a, b): SequenceMatcher(None, a, b).ratio() for a, b in itertools.combinations(names, 2)
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio >= ALIKE} == {}
    assert len({tuple(sorted(name)) for name in names}) == len(names)
