"""What MODEL and QUANT lead to, and a folder served by the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deployment import run
from deployment.needs import CannotStart
from model_server.tools.presets import HEADS_FILE
from tests import random_heads
from tests.e2e.service import wait_until
from tests.ports import free_port
from tests.random_heads import Kind
from tests.structure.modules import ROOT

Q8_0, Q4_0, Q4_K_M = "vicuna-7b-v1.3-q8_0.gguf", "vicuna-7b-v1.3-q4_0.gguf", "v-Q4_K_M.gguf"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project: no models yet, no settings."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "MODELS", tmp_path / "models")
    for name in ("MODEL", "QUANT", "MODEL_PATH", "MEDUSA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "models"


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def chosen(
    monkeypatch: pytest.MonkeyPatch, model: object, quant: str = ""
) -> tuple[Path, str | None]:
    """MODEL_PATH and MEDUSA_PATH."""
    monkeypatch.setenv("MODEL", str(model))
    monkeypatch.setenv("QUANT", quant)
    env = run.environment()
    return Path(env["MODEL_PATH"]), env.get("MEDUSA_PATH")


def test_without_a_model_nothing_is_chosen(models: Path) -> None:
    env = run.environment()
    assert "MODEL_PATH" not in env
    assert "MEDUSA_PATH" not in env


def test_a_file_is_served_as_it_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(models / "vicuna-7b", Q8_0, HEADS_FILE)
    assert chosen(monkeypatch, folder / Q8_0) == (folder / Q8_0, None)


def test_a_name_leads_to_its_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(models / "vicuna-7b", Q8_0, HEADS_FILE, "medusa_lm_head.pt", f"{Q4_0}.part")
    expected = (folder / Q8_0, str(folder / HEADS_FILE))
    assert chosen(monkeypatch, "vicuna-7b") == expected
    assert chosen(monkeypatch, folder) == expected
    monkeypatch.chdir(models)
    assert chosen(monkeypatch, "./vicuna-7b/") == expected


def test_a_folder_needs_no_heads(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(models / "vicuna-7b", Q8_0)
    assert chosen(monkeypatch, "vicuna-7b") == (folder / Q8_0, None)


def test_heads_that_were_chosen_stay(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(models / "vicuna-7b", Q8_0, HEADS_FILE)
    (models.parent / ".env").write_text("MEDUSA_PATH=mine.gguf\n")
    assert chosen(monkeypatch, "vicuna-7b")[1] == "mine.gguf"
    (models.parent / ".env").write_text("MEDUSA_PATH=\n")
    assert chosen(monkeypatch, "vicuna-7b")[1] == str(models / "vicuna-7b" / HEADS_FILE)


def test_shards_are_one_base(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"big-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    folder = put(models / "big", *shards)
    assert chosen(monkeypatch, "big") == (folder / shards[0], None)
    assert chosen(monkeypatch, "big", "q4_k_m") == (folder / shards[0], None)


@pytest.mark.parametrize(
    ("quant", "name"), [("Q8_0", Q8_0), ("q4_0", Q4_0), ("Q4_K_M", Q4_K_M), ("q8_0", Q8_0)]
)
def test_quant_chooses_among_several(
    quant: str, name: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(models / "vicuna-7b", Q8_0, Q4_0, Q4_K_M, HEADS_FILE)
    assert chosen(monkeypatch, "vicuna-7b", quant) == (folder / name, str(folder / HEADS_FILE))


@pytest.mark.parametrize(
    ("names", "model", "quant", "sentence"),
    [
        (
            [],
            "vicuna-7b",
            "",
            "There is no folder models/vicuna-7b: run `make model MODEL=vicuna-7b` first, "
            "or give MODEL= the path of a GGUF file.",
        ),
        (
            [HEADS_FILE],
            "vicuna-7b",
            "",
            "{folder} holds no base model: run `make model` first.",
        ),
        (
            [Q8_0, Q4_0],
            "vicuna-7b",
            "",
            f"{{folder}} holds {Q4_0}, {Q8_0}: choose one by its type, such as QUANT=Q8_0.",
        ),
        (
            [Q8_0, Q4_K_M],
            "vicuna-7b",
            "Q4_K",
            f"{{folder}} holds no Q4_K, only {Q4_K_M}, {Q8_0}: `make model QUANT=Q4_K` makes "
            "Vicuna's, `python -m model_server.tools.quantize` any other.",
        ),
        (
            [Q8_0],
            "./m.gguf",
            "Q4_0",
            "QUANT=Q4_0 chooses among the files of a folder: ./m.gguf is none.",
        ),
        ([Q8_0], "", "Q4_0", "QUANT=Q4_0 chooses among the files of a folder: name it by MODEL=."),
    ],
)
def test_what_cannot_be_served_is_said(
    names: list[str],
    model: str,
    quant: str,
    sentence: str,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if names:
        put(models / "vicuna-7b", *names)
    with pytest.raises(CannotStart) as refused:
        chosen(monkeypatch, model, quant)
    assert str(refused.value) == sentence.format(folder=models / "vicuna-7b")


@pytest.mark.parametrize("name", ["MODEL", "MODEL_PATH"])
def test_a_missing_file_is_named(name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(models / "none.gguf"))
    with pytest.raises(CannotStart, match=f"no model file {models}/none.gguf: check {name}=."):
        run.check(run.environment())


@pytest.mark.parametrize("given", ["MODLE", "model", "MODELL"])
def test_a_misspelt_choice_is_named(
    given: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(given, "any.gguf")
    run.say_misspelt(run.environment())
    assert f"{given} is no setting, and is ignored: is MODEL meant?\n" in capsys.readouterr().err


def test_env_is_read_as_compose_reads_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "8")
    text = (
        "\ufeffPORT=8010  # not 8000\r\n"
        "export LOG_LEVEL=INFO\r\n"
        "# BATCH_SIZE=1\n"
        "BATCH_SIZE=2\n"
        "\n"
        "MODEL_NAME = 'a # b'\n"
        'CHAT_TEMPLATE="a b" # c\n'
        "RATE_LIMIT_STORAGE=redis://:p#w@h:1\n"
        "MEDUSA_PATH=\n"
        "MODEL_SERVER_URLS=http://a:${PORT}\n"
    )
    (models.parent / ".env").write_text(text, encoding="utf-8", newline="")
    expected = {
        "PORT": "8010",
        "LOG_LEVEL": "INFO",
        "BATCH_SIZE": "8",
        "MODEL_NAME": "a # b",
        "CHAT_TEMPLATE": "a b",
        "RATE_LIMIT_STORAGE": "redis://:p#w@h:1",
        "MEDUSA_PATH": "",
        "MODEL_SERVER_URLS": "http://a:8010",
    }
    settings = run.settings()
    assert {name: settings.get(name) for name in expected} == expected


def test_what_is_empty_is_not_set(models: Path) -> None:
    names = ("HOST", "PORT", "MODEL_SERVER_HOST", "MODEL_SERVER_PORT", "MODEL_SERVER_URLS")
    (models.parent / ".env").write_text("=\n".join([*names, ""]))
    values = ["0.0.0.0", "8000", "127.0.0.1", "8001", "http://127.0.0.1:8001"]
    assert [run.settings()[name] for name in names] == values


@pytest.mark.parametrize("name", ["HOST", "MODEL_SERVER_HOST"])
@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9"])
def test_a_host_that_cannot_be_bound_is_not_called_a_port(name: str, host: str) -> None:
    env = {"PORT": str(free_port()), "MODEL_SERVER_PORT": str(free_port()), "HOST": "127.0.0.1"}
    with pytest.raises(CannotStart, match=f"^{name} {host} is no address of this machine: "):
        run.check({**env, name: host})


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def child_of(parent: int, module: str) -> int:
    """The pid of the process that runs a module."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    [pid] = [
        each
        for each in map(int, children)
        if module in Path(f"/proc/{each}/cmdline").read_text().split("\0")
    ]
    return pid


def test_a_folder_is_served_with_its_heads(random_q8_path: Path, tmp_path: Path) -> None:
    (tmp_path / "base-q8_0.gguf").symlink_to(random_q8_path)
    random_heads.write(tmp_path / HEADS_FILE, Kind(file_type="Q8_0", num_heads=3))
    port, model_port = str(free_port()), str(free_port())
    settings = {"PORT": port, "MODEL_SERVER_PORT": model_port, "HOST": "127.0.0.1"}
    asked = {"MODEL": str(tmp_path), "QUANT": "Q8_0", "N_THREADS": "1", "MEDUSA_ANY_BASE": "true"}
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, ROOT / "deployment" / "run.py"],
            env={**os.environ, **settings, **asked, "OMP_WAIT_POLICY": "passive"},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: "Ready." in log.read_text(), "the service")
            info = httpx.get(f"http://127.0.0.1:{model_port}/info", trust_env=False).json()
            assert info["heads"] == 3
            os.kill(child_of(process.pid, "model_server"), signal.SIGKILL)
            wait_until(lambda: "is started again in 1 s" in log.read_text(), "the news")
            wait_until(lambda: is_ready(f"http://127.0.0.1:{model_port}"), "its return")
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 0
