"""The wheel, and what pip makes of it: one command, that serves.

`tests/deployment/from_nothing.sh` is the whole way with a network, by hand.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import httpx
import pytest

from deployment import command, needs
from model_server import places
from tests import twin
from tests.deployment import installing
from tests.deployment.installing import Installed
from tests.deployment.tiny_llama import PACKAGE, VERSION, write_source, write_wheel
from tests.e2e.service import wait_until
from tests.ports import free_port
from tests.structure.modules import ROOT

TIERS = ("api", "model_server")
NINJA = ROOT / ".venv" / "llama" / "ninja" / "bin"  # where the machine has none


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installing.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return installing.install(wheel, tmp_path_factory.mktemp("installed"))


def _named(requirements: str) -> set[str]:
    text = (ROOT / "requirements" / requirements).read_text()
    lines = [line.partition("==")[0] for line in text.splitlines()]
    return {re.sub(r"\[.*", "", line).replace("_", "-") for line in lines if line}


def test_everything_lies_in_one_folder(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "medusa_serve",
        f"{wheel.name.rpartition('-py3')[0]}.dist-info",
    }
    ours = {name.removeprefix("medusa_serve/") for name in names if "dist-info" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *TIERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    left_out = {"api/static/page.png", "model_server/demo/prompts.txt"}
    assert {name for name in ours if name.startswith(TIERS)} == set(tracked) - left_out
    assert wheel.stat().st_size < 8e6


def test_what_it_asks_of_pip_is_what_was_locked(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        [name] = [each for each in opened.namelist() if each.endswith("METADATA")]
        about = BytesParser().parsebytes(opened.read(name))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert (about["Name"], about["Version"]) == ("medusa-serve", version[1])
    asked = [each for each in about.get_all("Requires-Dist", []) if "extra ==" not in each]
    bounds = dict(each.replace("_", "-").split(">=") for each in asked)
    inputs = _named("gateway.in") | _named("model-server.in")
    # llama.cpp is built at the first start: what its Python part wants, and what fetches it.
    assert bounds.keys() == inputs - {"llama-cpp-python"} | {"diskcache", "pip"}
    locked = {
        found[1]: [int(part) for part in found[2].split(".")]
        for file in ("gateway", "model-server")
        for found in re.finditer(
            r"^([\w-]+)==([\d.]+)", (ROOT / f"requirements/{file}.txt").read_text(), re.M
        )
    }
    above = {
        name: bound
        for name, bound in bounds.items()
        if name in locked and [int(part) for part in bound.split(".")] > locked[name]
    }
    assert above == {}


def test_help_lists_every_command(installed: Installed) -> None:
    said = installed.run("--help")
    assert (said.returncode, said.stderr) == (0, "")
    for name in (*command.WHAT, *places.TOOLS):
        assert re.search(rf"^  .*\b{name}\b", said.stdout, re.M), name
    assert installed.run("--version").stdout.startswith("medusa-serve ")


@pytest.mark.parametrize("name", [*command.WHAT, *places.TOOLS, "convert"])
def test_each_command_has_a_help_of_its_own(
    installed: Installed, name: str, tmp_path: Path
) -> None:
    """In another home, where llama.cpp is not built."""
    said = installed.run(*name.split(), "--help", HOME=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith(f"usage: medusa-serve {name} ")
    assert "python -m" not in said.stdout
    assert "make " not in said.stdout.replace("make an API key", "")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("", 2, "usage: medusa-serve COMMAND"),
        ("srve", 2, "medusa-serve has no srve: is serve meant? --help lists all."),
        ("convert", 2, "usage: medusa-serve convert base|heads ..."),
        ("serve PROT=8010", 2, "PROT is no setting: is PORT meant?"),
        ("serve a.gguf b.gguf", 2, "b.gguf: unexpected; see `medusa-serve serve --help`."),
        ("serve --port 8010", 2, "--port: unexpected; see `medusa-serve serve --help`."),
        ("gateway a.gguf", 2, "a.gguf: unexpected; see `medusa-serve gateway --help`."),
        ("serve none.gguf HOST=127.0.0.1", 1, "There is no model file {here}/none.gguf"),
        (
            "serve vicuna-7b",
            1,
            "There is no folder {cache}/models/vicuna-7b: run `medusa-serve fetch vicuna-7b`",
        ),
    ],
)
def test_a_wrong_line_is_a_sentence(
    installed: Installed, words: str, code: int, sentence: str
) -> None:
    said = installed.run(*words.split())
    expected = sentence.format(here=installed.here, cache=installed.cache)
    assert (said.returncode, said.stdout) == (code, "")
    assert said.stderr.startswith(expected)


def test_without_a_compiler_it_says_what_to_install(installed: Installed, tmp_path: Path) -> None:
    """In another home, where nothing is built."""
    said = installed.run("verify", HOME=tmp_path, CXX="/none/c++")
    assert said.returncode == 1
    assert said.stderr.startswith("There is no C++ compiler, and llama.cpp is built from source")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("quantize", 2, "error: the following arguments are required: IN, OUT"),
        ("heads base.gguf out.gguf --heads 99", 2, "must be a number from 1 to 16, not 99"),
        ("doctor base.gguf", 2, "error: the following arguments are required: HEADS"),
        ("convert base folder base-q8_0.gguf --type F16", 2, "base-q8_0.gguf would hold F16"),
        ("fetch nothing", 1, "nothing: must be one of vicuna-7b, or OWNER/REPO/FILE of a hub"),
    ],
)
def test_nothing_is_built_for_a_wrong_line(
    installed: Installed, tmp_path: Path, words: str, code: int, problem: str
) -> None:
    said = installed.run(*words.split(), HOME=tmp_path)
    assert (said.returncode, said.stdout) == (code, "")
    assert problem in said.stderr


def test_an_interrupted_build_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(needs, "llama", interrupt)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "argv", ["medusa-serve", "quantize", "a.gguf", "b.gguf"])
    assert command.main() == 130
    assert capsys.readouterr().err == "Interrupted: the same command goes on from here.\n"


def test_both_tiers_serve_from_any_folder(installed: Installed, twin_q8_path: Path) -> None:
    """Settings are .env's of that folder, paths are its own, and its own `api` is not ours."""
    llama = installed.has_llama()
    port, model_port = free_port(), free_port()
    (installed.here / ".env").write_text(f"MODEL_SERVER_PORT={model_port}\nPORT=1\n")
    (installed.here / "api").mkdir()
    (installed.here / "api" / "__init__.py").write_text("raise SystemExit('the wrong api')")
    (installed.here / "twin.gguf").symlink_to(twin_q8_path)
    words = ("serve", "MODEL_PATH=twin.gguf", f"PORT={port}", "HOST=127.0.0.1", "N_THREADS=1")
    log = installed.folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            installed.command(*words),
            env=installed.environment(),
            cwd=installed.here,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "Ready." in log.read_text(), "the service")
        asked = {"prompt": (prompt := twin.prompt(5)), "max_tokens": 20, "temperature": 0}
        url = f"http://127.0.0.1:{port}/v1/completions"
        answer = httpx.post(url, json=asked, trust_env=False).json()
        assert answer["choices"][0]["text"] == twin.text(twin.answer(prompt, 20))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        paths = [Path(f"/proc/{child}/environ").read_bytes() for child in children]
        assert any(f"PYTHONPATH={llama}\0".encode() in each for each in paths)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # as uvx passes on what a terminal sent already
        assert process.wait(40) == 0, log.read_text()


def test_the_first_start_builds_llama_into_the_cache(installed: Installed, tmp_path: Path) -> None:
    """On a source of two files; what is there is not built again."""
    made = installing.copied(
        installed,
        tmp_path,
        {
            "requirements/model-server.txt": f"llama-cpp-python=={VERSION}\n",
            "model_server/kernels/CMakeLists.txt": "# none\n",
        },
    )
    code = (
        f"import sys; sys.path.insert(0, {str(made)!r}); from deployment import needs; "
        "env = {}; print(needs.places.llama() / needs.key('')) if sys.argv[1:] else "
        "(needs.llama(env), __import__('llama_cpp'), print(__import__('llama_cpp').said, env))"
    )

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        path = f"{installed.environment()['PATH']}:{NINJA}"
        return subprocess.run(
            [installed.python, "-c", code, *words],
            env=installed.environment(HOME=tmp_path, PATH=path, PIP_NO_INDEX=1),
            capture_output=True,
            text=True,
            timeout=120,
        )

    folder = Path(python("where").stdout.strip())
    part = folder.with_suffix(".part")
    (part / "sources").mkdir(parents=True)
    write_source(part / "sources" / f"llama_cpp_python-{VERSION}.tar.gz")
    write_wheel(part / "wheels")
    first = python()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0].startswith("Building llama.cpp from source")
    assert "building llama.cpp: " in first.stderr
    assert first.stdout.splitlines()[-1].startswith("option none, header as it was {'PYTHONPATH'")
    assert (folder / "llama_cpp" / "__init__.py").read_text() == PACKAGE
    assert not part.exists()
    again = python()
    assert again.stdout.startswith("option none, header as it was")
