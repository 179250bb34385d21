from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from model_server.__main__ import listen
from model_server.config import ModelServerSettings
from model_server.errors import SettingError
from model_server.llama import backend
from tests.e2e.service import wait_until
from tests.model_server.engine.faults import spoil
from tests.model_server.llama.test_model import with_block_count
from tests.ports import free_port


def command(**settings: object) -> tuple[list[str], dict[str, str]]:
    values = {"n_threads": 1, "model_server_port": 0, "model_context_size": 128, **settings}
    upper = {name.upper(): str(value) for name, value in values.items()}
    return [sys.executable, "-m", "model_server"], {**os.environ, **upper}


def refused(**settings: object) -> str:
    """Start where it must fail: exit code 1; the last line it said."""
    arguments, environment = command(**settings)
    ended = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@contextmanager
def running(**settings: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has begun to listen, and its address. Ended by its process id."""
    port = free_port()
    arguments, environment = command(**{"model_server_port": port, **settings})
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def wait_ready(url: str) -> None:
    give_up = time.monotonic() + 30
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < give_up:
            try:
                if client.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    raise AssertionError("not ready in 30 s")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(twin_path: Path, how: signal.Signals) -> None:
    with running(model_path=twin_path) as (process, url):
        wait_ready(url)
        process.send_signal(how)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "ready: tiny twin on the CPU, 8 slots, context 128, 256 KV cells" in said
    assert "loading" in said.splitlines()[0]


def test_a_crowd_of_gateways_is_not_bounded_by_the_limit_of_a_shell(twin_path: Path) -> None:
    port = free_port()
    arguments, environment = command(model_path=twin_path, model_server_port=port)
    limited = ["bash", "-c", f"ulimit -S -n 64; exec {' '.join(arguments)}"]
    process = subprocess.Popen(limited, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_ready(f"http://127.0.0.1:{port}")
        with ExitStack() as kept:
            for _ in range(100):
                kept.enter_context(socket.create_connection(("127.0.0.1", port)))
            wait_ready(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


def test_files_that_cannot_be_served_end_it_in_one_sentence(
    twin_path: Path, tmp_path: Path
) -> None:
    whole = twin_path.read_bytes()
    files = {"empty": b"", "text": b"no model" * 100, "cut": whole[: len(whole) // 2]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "directory").mkdir()
    for count in (0, 600):
        with_block_count(twin_path, tmp_path / f"layers{count}", count)
    for name in (*files, "directory", "layers0", "layers600", "missing"):
        line = refused(model_path=tmp_path / name)
        assert line.startswith(f"model server: MODEL_PATH {tmp_path / name}: "), line


@pytest.mark.parametrize("tensor", ["output_norm.weight", "blk.0.attn_v.weight"])
def test_a_damaged_file_is_called_that(twin_path: Path, tmp_path: Path, tensor: str) -> None:
    path = spoil(twin_path, tmp_path / "rotten.gguf", tensor)
    assert refused(model_path=path) == (
        f"model server: MODEL_PATH {path}: nothing can be computed with it: its logits are not "
        "finite, so the file is damaged or the computation is wrong"
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"n_parallel": "many"}, "N_PARALLEL: "),
        ({"model_context_size": -3}, "MODEL_CONTEXT_SIZE: "),
        ({"kv_cache_tokens": 5}, "KV_CACHE_TOKENS: 5 is less than the context of 128 tokens"),
        ({"kv_cache_tokens": 5_000_000_000}, "KV_CACHE_TOKENS: Input should be less than or"),
        ({"kv_cache_tokens": 2_000_000_000}, "KV_CACHE_TOKENS: 2000000000 cells take"),
        ({"chat_template": "/no/such/file"}, "CHAT_TEMPLATE: /no/such/file can't be read"),
    ],
)
def test_settings_that_are_wrong_end_it_in_one_sentence(
    twin_path: Path, settings: dict[str, object], problem: str
) -> None:
    assert refused(model_path=twin_path, **settings).startswith(f"model server: {problem}")


def test_a_failure_that_nobody_foresaw_ends_it_too(twin_path: Path) -> None:
    _, environment = command(model_path=twin_path)
    code = "import model_server.__main__ as m; m.load = lambda *_: 1 // 0; exit(m.main())"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


FAULTY = """
import sys, time
import model_server.__main__ as main
from model_server.engine import watchdog
from model_server.errors import EngineError
from model_server.llama.context import Context

watchdog._AT_LEAST_S, decode = 1.0, Context.decode

def faulty(self, batch):
    if main.is_serving:
        if sys.argv[1] == "hangs":
            time.sleep(3600)
        raise EngineError("llama_decode of 1 rows ended with -3")
    decode(self, batch)

def load(*given):
    served = main_load(*given)
    main.is_serving = True
    return served

Context.decode, main.is_serving, main_load, main.load = faulty, False, main.load, load
sys.exit(main.main())
"""


@contextmanager
def faulty(how: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server none of whose decodes ends well once it is ready."""
    port = free_port()
    _, environment = command(model_path=path, model_server_port=port, max_step_ms=5)
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTY, how], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_ready(f"http://127.0.0.1:{port}")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def batch(name: str) -> dict[str, object]:
    return {"id": name, "requests": [{"id": name, "prompt_tokens": [1, 5, 9]}]}


def test_an_engine_that_can_compute_nothing_ends_the_process(twin_path: Path) -> None:
    with faulty("fails", twin_path) as (process, url):
        started = time.monotonic()
        answer = httpx.post(f"{url}/batch", json=batch("a"), trust_env=False)
        assert [json.loads(line).get("status") for line in answer.text.splitlines()][-1] == 503
        _, said = process.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert process.returncode == 1
    assert "the engine ends: no step can succeed any more" in said


def test_an_engine_that_hangs_ends_the_process(twin_path: Path) -> None:
    with (
        faulty("hangs", twin_path) as (process, url),
        httpx.Client(base_url=url, trust_env=False, timeout=20) as client,
        client.stream("POST", "/batch", json=batch("a")),
    ):
        wait_until(lambda: client.get("/ready").status_code == 503, "it to say so", 10)
        refused = client.post("/batch", json=batch("b"))
        assert (refused.status_code, refused.json()["status"]) == (503, "stuck")
        assert client.get("/health").status_code == 200
        assert process.wait(15) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "model server: the engine hangs, so the process ends, to be started again" in said


def test_a_port_in_use_ends_it_before_loading(twin_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(model_path=twin_path, model_server_port=port)
    assert line.startswith(f"model server: MODEL_SERVER_PORT: 127.0.0.1:{port} can't be listened")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_listening_on_any_loopback_address(host: str) -> None:
    if host == "::1" and "lo" not in Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6 loopback address")
    listener = listen(ModelServerSettings(model_server_host=host, model_server_port=0))
    assert listener.getsockname()[1] > 0
    listener.close()


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^MODEL_SERVER_HOST: 192\.0\.2\.1 is no address of"):
        listen(ModelServerSettings(model_server_host="192.0.2.1", model_server_port=0))


def test_libraries_that_are_not_there_are_named(tmp_path: Path) -> None:
    said = refused(llama_cpp_lib_path=tmp_path)
    assert said.startswith("model server: llama.cpp can't be loaded: ")
    assert "llama" in said


def test_a_missing_driver_is_named(broken_gpu: Path, twin_path: Path) -> None:
    assert refused(model_path=twin_path, llama_cpp_lib_path=broken_gpu) == (
        "model server: N_GPU_LAYERS: no GPU can be used: libcuda.so.1: cannot open shared object "
        "file: No such file or directory; containers get the NVIDIA driver by --gpus all; "
        "0 serves on the CPU"
    )


def test_without_layers_on_the_gpu_no_driver_is_missed(broken_gpu: Path, twin_path: Path) -> None:
    code = f"""
from pathlib import Path
from model_server.llama.model import Model
print(Model(Path({str(twin_path)!r}), 0).uses_gpu)
"""
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(broken_gpu)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def broken_gpu(tmp_path: Path) -> Path:
    """llama.cpp's libraries and one for GPUs, which asks for a driver that nothing provides."""
    for path in backend.LIBRARIES.glob("lib*.so*"):
        (tmp_path / path.name).symlink_to(path)
    sources = tmp_path / "driver.c", tmp_path / "gpu.c"
    sources[0].write_text("int cuInit(void) { return 0; }\n")
    sources[1].write_text("int cuInit(void);\nint gpu(void) { return cuInit(); }\n")
    driver = tmp_path / "libcuda.so.1"
    build = ["cc", "-shared", "-fPIC", "-o"]
    subprocess.run([*build, driver, "-Wl,-soname,libcuda.so.1", sources[0]], check=True)
    subprocess.run([*build, tmp_path / "libggml-cuda.so", sources[1], driver], check=True)
    driver.unlink()
    return tmp_path
