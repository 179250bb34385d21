from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from model_server.config import ModelServerSettings
from model_server.engine.startup import load
from model_server.errors import BuildError
from model_server.llama import backend, identity, kernels, matmuls, own_trial, trial
from model_server.metrics import ModelServerMetrics
from tests import gguf_file, planted, random_model
from tests.model_server.test_main import refused

needs_kernels = pytest.mark.skipif(
    not kernels.path().exists(), reason="this build has no kernels of its own"
)


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    forget()


def forget() -> None:
    identity.build.cache_clear()
    identity.processor.cache_clear()


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have llama.cpp's libraries of a folder tried, as a server started with them would."""
    monkeypatch.setattr(backend, "LIBRARIES", folder)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    forget()


def was_held(caplog: pytest.LogCaptureFixture, *files: Path) -> bool:
    caplog.clear()
    with caplog.at_level("INFO"):
        trial.require(files)
    return "trial" in caplog.text


def test_a_good_build_is_tried_once(twin_q8_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert was_held(caplog, twin_q8_path)
    assert "was not tried" not in caplog.text
    assert not was_held(caplog, twin_q8_path)


def test_other_files_are_tried_too(
    twin_path: Path, twin_q8_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert was_held(caplog, twin_q8_path)
    assert was_held(caplog, twin_path)
    assert was_held(caplog, twin_path, twin_q8_path)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(twin_path.read_bytes())
    assert was_held(caplog, changed)
    os.utime(changed, ns=(0, 0))
    assert was_held(caplog, changed)
    assert not was_held(caplog, changed)


def test_another_build_is_tried(
    twin_q8_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert was_held(caplog, twin_q8_path)
    use(planted.plant(tmp_path / "lib", {}.fromkeys(planted.ILLEGAL, "")), monkeypatch)
    assert not was_held(caplog, twin_q8_path)
    [*_, library] = sorted((tmp_path / "lib").glob("libggml-cpu*"))
    with library.open("ab") as file:
        file.write(b"\0")
    forget()
    assert was_held(caplog, twin_q8_path)


def test_another_processor_is_tried(
    twin_q8_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert was_held(caplog, twin_q8_path)
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Another\n\nprocessor : 1\n")
    monkeypatch.setattr(identity, "_CPU_INFO", tmp_path / "cpuinfo")
    forget()
    assert was_held(caplog, twin_q8_path)
    assert not was_held(caplog, twin_q8_path)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (
            planted.ILLEGAL,
            "a matrix product (Q8_0 weights, 1 at once) ended in SIGILL, "
            "an instruction that the processor doesn't have",
        ),
        (planted.NOTHING, "a matrix product is wrong (Q8_0 weights, 1 at once: off by "),
    ],
    ids=["illegal instruction", "computes nothing"],
)
def test_a_bad_build_ends_the_server_with_a_sentence(
    code: planted.Code, problem: str, twin_q8_path: Path, tmp_path: Path
) -> None:
    folder = planted.plant(tmp_path / "lib", code)
    for _ in range(2):  # what failed isn't kept
        said = refused(model_path=twin_q8_path, llama_cpp_lib_path=folder)
        build = f"llama.cpp of llama-cpp-python 0.3.36 in {folder}"
        assert said.startswith(f"model server: {build} fails on this processor (")
        assert identity.processor_name() in said
        assert problem in said
        assert said.endswith("; build it here with `make clean && make run`, or use another image")


def test_the_planted_instruction_is_what_a_server_would_die_of(
    twin_q8_path: Path, tmp_path: Path
) -> None:
    folder = planted.plant(tmp_path / "lib", planted.ILLEGAL)
    code = """
import sys
from pathlib import Path
from model_server.config import ModelServerSettings
from model_server.engine.startup import load
from model_server.metrics import ModelServerMetrics
load(ModelServerSettings(model_path=Path(sys.argv[1]), n_threads=1), ModelServerMetrics())
"""
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code, twin_q8_path], env=env, capture_output=True)
    assert done.returncode == -4


@pytest.mark.parametrize(
    ("code", "reason"),
    [(planted.KILLED, "exit code -9"), (planted.FOR_EVER, "timed out after 4")],
    ids=["killed from outside", "too slow"],
)
def test_a_trial_that_could_not_be_held_blames_nobody(
    code: planted.Code,
    reason: str,
    twin_q8_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    use(planted.plant(tmp_path / "lib", code), monkeypatch)
    monkeypatch.setattr(trial, "_TIMEOUT_S", 4.0)
    for _ in range(2 if reason.startswith("exit") else 1):  # nor is it kept as a good one
        assert was_held(caplog, twin_q8_path)
        assert reason in caplog.text


def test_files_that_cannot_be_read_are_left_to_who_loads_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not was_held(caplog, tmp_path / "missing.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert was_held(caplog, tmp_path / "broken.gguf")
    assert not trial.own_kernels([tmp_path / "broken.gguf"])
    assert "not tried" not in caplog.text
    with caplog.at_level("DEBUG"):
        trial.require([tmp_path / "broken.gguf"])
    assert "was not tried, exit code 1: model_server.errors.ModelFileError: " in caplog.text


def test_where_nothing_can_be_kept_it_is_tried_each_time(
    twin_q8_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert was_held(caplog, twin_q8_path)
    assert was_held(caplog, twin_q8_path)


SPOILED = """
#include <cstring>
extern "C" {{
void * ggml_backend_init() {{ {code} }}
int ggml_backend_score() {{ return 1; }}
}}
"""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ('asm volatile("ud2"); return nullptr;', "(loading) ended in SIGILL, an instruction"),
        ("std::memset((void *) 8, 0, 8); return nullptr;", "(loading) ended in SIGSEGV, faulty"),
        ("for (volatile int i = 0;; i = 1) {}", "(loading) did not end in 3 s"),
    ],
    ids=["illegal instruction", "faulty", "hangs"],
)
def test_kernels_of_our_own_that_fail_are_done_without(
    code: str, problem: str, twin_q8_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoiled.cpp").write_text(SPOILED.format(code=code))
    library = tmp_path / "libmedusa-kernels.so"
    compiled = ["c++", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "spoiled.cpp")]
    subprocess.run(compiled, check=True, capture_output=True)
    monkeypatch.setenv("CPU_KERNELS_LIB", str(library))
    monkeypatch.setattr(trial, "_OWN_TIMEOUT_S", 3.0)
    assert problem in trial.own_kernels([twin_q8_path])


def test_kernels_that_are_not_trusted_are_not_used(
    twin_q8_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = ModelServerSettings(
        model_path=twin_q8_path, n_threads=1, model_context_size=64, cpu_kernels="auto"
    )
    served = load(settings, ModelServerMetrics(), distrust="a computation failed")
    served.close()
    assert not served.info.cpu_kernels
    assert "kernels of our own are not used: a computation failed" in served.info.warnings
    assert "attention by llama.cpp: a computation failed" in caplog.messages


@needs_kernels
def test_good_kernels_of_our_own_are_tried_once(
    twin_q8_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not trial.own_kernels([twin_q8_path])
    monkeypatch.setattr(trial, "_OWN_CHILD", "no.such.module")  # it isn't run again
    monkeypatch.setattr(trial, "_say_not_tried", lambda *_: pytest.fail("it was"))
    assert not trial.own_kernels([twin_q8_path])


@pytest.mark.parametrize("size", [None, 128])
def test_attention_is_tried_with_the_heads_that_the_file_has(
    size: int | None, tmp_path: Path
) -> None:
    """Some have more values in a head than the hidden state has for it."""

    def say(writer: gguf.GGUFWriter) -> None:
        if size is not None:
            writer.add_key_length(size)

    shape = random_model.SHAPE
    path = gguf_file.write(tmp_path / "heads.gguf", shape, "F32", [], also=say)
    expected = (shape.num_heads // shape.num_kv_heads, size or shape.head_dim)
    assert own_trial.head_shape(path) == expected


@needs_kernels
@pytest.mark.parametrize("wrong", ["attention", "multiply"])
def test_wrong_results_of_kernels_of_our_own_are_told(
    wrong: str, twin_q8_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is what is spoiled here: to the comparison that is the same."""
    right = own_trial.expected
    if wrong == "attention":
        monkeypatch.setattr(own_trial, "expected", lambda *args: right(*args) * 1.01)
    else:
        monkeypatch.setattr(matmuls, "allowed", lambda _: 1e-9)
    assert own_trial.main(str(twin_q8_path)) == BuildError.exit_code
    kernels.take_attention(False)
