"""What the images hold, and what a container of them may do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests import twin
from tests.docker.engine import START_TIMEOUT_S, Project, docker, inspect, is_healthy
from tests.e2e.service import wait_until

pytestmark = pytest.mark.docker

GATEWAY, MODEL_SERVER = "medusa-gateway:latest", "medusa-model-server:cpu"
MAX_GATEWAY_BYTES = 80_000_000
CPU = Path("/proc/cpuinfo").read_text()

QEMU = shutil.which("qemu-x86_64-static")
PROMPT = [1, 50, 60]
ASK = f"""
import json, urllib.request
asked = {{"id": "a", "prompt_tokens": {PROMPT}, "max_tokens": 8, "sampling": {{"temperature": 0}}}}
body = json.dumps({{"id": "b", "requests": [asked]}}).encode()
kind = {{"content-type": "application/json"}}
request = urllib.request.Request("http://127.0.0.1:8001/batch", body, kind)
print(urllib.request.urlopen(request).read().decode().strip())
"""

# Which file it took for the CPU's kernels.
KERNELS = """
from model_server.llama import backend
backend.init()
print(*{line.split("/")[-1].strip() for line in open("/proc/self/maps") if "libggml-cpu" in line})
"""


def run(image: str, code: str, *options: str) -> str:
    """What Python code prints in a new container."""
    return docker("run", "--rm", *options, "--entrypoint", "python3", image, "-c", code)


def num_bytes(image: str) -> int:
    return int(inspect(image)["Size"])


def test_the_gateway_is_small(images: None) -> None:
    base = os.environ.get("BASE_IMAGE") or "python:3.13-slim-trixie"
    added = num_bytes(GATEWAY) - num_bytes(base)
    print(f"{added / 1e6:.0f} MB on top of {base}")
    assert added <= MAX_GATEWAY_BYTES
    assert run(GATEWAY, "import importlib.util as u; print(u.find_spec('llama_cpp'))") == "None\n"


@pytest.mark.parametrize("image", [GATEWAY, MODEL_SERVER])
def test_images_say_how_to_run_them(images: None, image: str) -> None:
    config = inspect(image)["Config"]
    assert config["User"] == "10001:10001"
    assert config.get("StopSignal", "SIGTERM") == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"


@pytest.mark.parametrize("image", [GATEWAY, MODEL_SERVER])
@pytest.mark.parametrize("tool", ["gcc", "g++", "cc", "cmake", "git"])
def test_images_hold_no_build_tools(images: None, image: str, tool: str) -> None:
    assert run(image, f"import shutil; print(shutil.which('{tool}'))") == "None\n"


def test_the_model_server_holds_the_libraries_it_loads_alone(images: None) -> None:
    """Not llama.cpp's server, nor its network backend: most known holes are in those."""
    list_them = "import os; print(*{each.split('.so')[0] for each in os.listdir('/opt/llama')})"
    found = {each for each in run(MODEL_SERVER, list_them).split() if "-cpu-" not in each}
    assert found == {"libllama", "libggml", "libggml-base", "libmedusa-kernels"}


@pytest.mark.parametrize("image", [GATEWAY, MODEL_SERVER])
def test_a_container_stops_at_any_moment(images: None, image: str) -> None:
    """Also while Python starts, which as a container's first process would ignore the signal."""
    container = docker("run", "--detach", image).strip()
    docker("stop", "--time", "20", container)
    assert inspect(container)["State"]["ExitCode"] in (0, 128 + signal.SIGTERM)
    docker("rm", container)


@pytest.mark.parametrize("service_name", ["gateway", "model-server"])
def test_containers_write_nowhere_but_to_tmp(service: Project, service_name: str) -> None:
    [container] = service.containers(service_name)
    script = (
        "id -u; for d in / /app /opt /etc /models /keys /home /var/tmp /tmp; do "
        "[ -d $d ] && touch $d/x 2>/dev/null && echo $d; done; true"
    )
    assert docker("exec", container, "sh", "-c", script).split() == ["10001", "/tmp"]


@pytest.mark.parametrize("service_name", ["gateway", "model-server"])
def test_containers_have_no_privileges(service: Project, service_name: str) -> None:
    [container] = service.containers(service_name)
    status = docker("exec", container, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_the_model_server_is_not_published(service: Project) -> None:
    [container] = service.containers("model-server")
    seen = inspect(container)["NetworkSettings"]
    assert not any(seen["Ports"].values())
    [network] = seen["Networks"]
    assert inspect(network)["Internal"]
    no_way_out = "import socket; socket.create_connection(('1.1.1.1', 53), 3)"
    tried = subprocess.run(["docker", "exec", container, "python3", "-c", no_way_out], check=False)
    assert tried.returncode == 1


def test_kernels_are_for_no_less_than_this_cpu(images: None) -> None:
    """Of several fitting files it takes the one with most of the CPU's features."""
    [name] = run(MODEL_SERVER, KERNELS).split()
    print(name)
    lacking = {
        "avx2": ("x64", "sse42", "sandybridge", "ivybridge", "piledriver"),
        "avx512vl": ("haswell", "alderlake"),
        "avx512_vnni": ("skylakex", "cannonlake"),
    }
    kind = name.removeprefix("libggml-cpu-").removesuffix(".so")
    assert not any(flag in CPU and kind in kinds for flag, kinds in lacking.items())


@pytest.mark.skipif(not QEMU, reason="needs qemu-x86_64-static (Debian's qemu-user-static)")
@pytest.mark.parametrize(("cpu", "kernels"), [("Haswell", "haswell"), ("Nehalem", "sse42")])
def test_older_cpus_are_enough(cpu: str, kernels: str, twin_env: dict[str, str]) -> None:
    """Emulated ones, with and without AVX2: what they do not have ends the process."""
    options = ["--volume", f"{QEMU}:/qemu:ro", "--volume", f"{twin_env['MODELS']}:/models:ro"]
    options += ["--env", f"MODEL_PATH={twin_env['MODEL_PATH']}", "--entrypoint", "/qemu"]
    command = ["-cpu", cpu, "/opt/venv/bin/python3", "-m", "model_server"]
    container = docker("run", "--detach", *options, MODEL_SERVER, *command).strip()
    try:
        wait_until(lambda: is_healthy(container), "it to be healthy", START_TIMEOUT_S)
        events = docker("exec", container, "python3", "-c", ASK).splitlines()
        assert f"libggml-cpu-{kernels}.so" in docker("exec", container, "cat", "/proc/1/maps")
    finally:
        docker("rm", "--force", container)
    said = map(json.loads, filter(None, events))  # a slow one says nothing in empty lines
    tokens = [token for event in said for token in event.get("ids", [])]
    assert tokens == twin.answer(PROMPT, 8)
