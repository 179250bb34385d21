"""The systemd units: what systemd itself says of them, and what they promise of the tiers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from api.config import Settings
from model_server.__main__ import _DRAIN_S
from tests.structure import settings
from tests.structure.modules import ROOT

UNITS = ROOT / "deployment" / "systemd"
MODEL_SERVER, GATEWAY = "medusa-model-server.service", "medusa-gateway.service"
CUDA = Path(f"{MODEL_SERVER}.d") / "cuda.conf"
TIERS = {MODEL_SERVER: "Model server", GATEWAY: "Gateway"}
# Of the CUDA libraries, not of ours.
FOREIGN = {"XDG_CACHE_HOME", "CUDA_CACHE_PATH"}
# systemd-analyze's exposure times ten: 9.6 is a unit without any protection, 2 is well protected.
MAX_EXPOSURE = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


def values(unit: str | Path, name: str) -> list[str]:
    """What a unit gives for an option, each time it names it."""
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), flags=re.MULTILINE)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, but of this checkout and this interpreter: the programs they name exist."""
    for unit in TIERS:
        text = (UNITS / unit).read_text()
        text = text.replace("/opt/medusa/.venv/bin/python", sys.executable)
        (tmp_path / unit).write_text(text.replace("/opt/medusa", str(ROOT)))
    return tmp_path


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def add_cuda(installed: Path) -> None:
    (installed / CUDA).parent.mkdir()
    shutil.copy(UNITS / CUDA, installed / CUDA)


@needs_systemd
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
def test_systemd_understands_every_line(installed: Path, cuda: bool) -> None:
    if cuda:
        add_cuda(installed)
    options = ("--man=no", "--recursive-errors=no")
    done = analyze(installed, "verify", *options, *(f"./{unit}" for unit in TIERS))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_names_a_line_it_does_not_understand(installed: Path) -> None:
    """Or the test above could not fail."""
    unit = installed / GATEWAY
    unit.write_text(unit.read_text().replace("[Service]", "[Service]\nProtectEverything=yes"))
    done = analyze(installed, "verify", "--man=no", "--recursive-errors=no", f"./{GATEWAY}")
    assert "'ProtectEverything'" in done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", [MODEL_SERVER, GATEWAY, CUDA], ids=str)
def test_little_is_exposed(installed: Path, unit: str | Path) -> None:
    if unit == CUDA:
        add_cuda(installed)
    service = MODEL_SERVER if unit == CUDA else str(unit)
    limit = ("--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager")
    done = analyze(installed, "security", *limit, f"./{service}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", [MODEL_SERVER, GATEWAY, CUDA], ids=str)
def test_units_set_only_what_exists(unit: str | Path) -> None:
    named = {value.partition("=")[0] for value in values(unit, "Environment")}
    tier = TIERS[MODEL_SERVER if unit == CUDA else str(unit)]
    assert named - FOREIGN <= settings.rows(settings.PROCESSES[tier]).keys()


def test_each_unit_runs_its_tier() -> None:
    python = "/opt/medusa/.venv/bin/python -m"
    assert values(MODEL_SERVER, "ExecStart") == [f"{python} model_server"]
    assert values(GATEWAY, "ExecStart") == [f"{python} api"]


def test_open_answers_may_finish_before_systemd_kills() -> None:
    drain = {GATEWAY: Settings.model_fields["drain_timeout"].default, MODEL_SERVER: _DRAIN_S}
    assert values(GATEWAY, "Environment") == [f"DRAIN_TIMEOUT={drain[GATEWAY]}"]
    for unit, seconds in drain.items():
        assert float(values(unit, "TimeoutStopSec")[0]) >= seconds + 10


def test_the_gateway_does_not_fall_with_a_model_server() -> None:
    for option in ("Wants", "After"):
        assert any(MODEL_SERVER in value.split() for value in values(GATEWAY, option))
    for option in ("Requires", "BindsTo", "PartOf", "Requisite"):
        assert values(GATEWAY, option) == []


def test_both_tiers_are_protected_alike() -> None:
    """But for names, where settings come from, what DRAIN_TIMEOUT is for, and what is kept."""
    own = re.compile(r"^(#.*|)$|^(CacheDirectory|Environment|EnvironmentFile|ExecStart|User)=")
    services = [(UNITS / unit).read_text().partition("[Service]")[2] for unit in TIERS]
    first, second = (
        [each for each in text.splitlines() if not own.match(each)] for text in services
    )
    assert first == second
