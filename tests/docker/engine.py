"""The Docker engine through its own command line: a project of the repository's compose file."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.service import wait_until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 3_600  # a first build takes long
START_TIMEOUT_S = 120


def docker(*arguments: str, env: dict[str, str] | None = None) -> str:
    """What it prints on stdout. AssertionError with everything it said where it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Service:
    """Both tiers somewhere, on a port of this machine."""

    name: str
    env: dict[str, str]
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, num_servers: int = 1) -> None:
        def ready() -> bool:
            return [each["ready"] for each in self.servers()].count(True) == num_servers

        wait_until(ready, f"{num_servers} model servers to be ready", START_TIMEOUT_S)

    def servers(self) -> list[dict[str, Any]]:
        """The model servers as the gateway sees them."""
        try:
            answer = httpx.get(f"{self.url}/ready", trust_env=False, timeout=5)
        except httpx.TransportError:
            return []
        return list(answer.json()["servers"])

    def client(self, timeout_s: float = 120) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )


class Project(Service):
    """The services of the compose file."""

    def compose(self, *arguments: str) -> str:
        env = {"COMPOSE_FILE": str(ROOT / "docker-compose.yml"), **self.env, "PORT": str(self.port)}
        return docker("compose", "--project-name", self.name, *arguments, env=env)

    def up(self, *arguments: str) -> None:
        """Start what is not running, and wait until the service answers."""
        self.compose("up", "--detach", "--no-build", *arguments)
        wait_until(self.servers, "the gateway", START_TIMEOUT_S)

    def containers(self, service: str) -> list[str]:
        """Ids of the running ones."""
        return self.compose("ps", "--quiet", service).split()


class Stack(Service):
    """The services of Swarm's stack file."""

    def deploy(self) -> None:
        env = {**self.env, "PORT": str(self.port)}
        file = "deployment/swarm/stack.yml"
        docker("stack", "deploy", "--resolve-image", "never", "-c", file, self.name, env=env)

    def containers(self, service: str) -> list[str]:
        """Ids of the running ones."""
        of_it = f"label=com.docker.swarm.service.name={self.name}_{service}"
        return docker("ps", "--quiet", "--no-trunc", "--filter", of_it).split()

    def update(self, service: str, *options: str) -> None:
        """Change a service, replica by replica, and wait until that is done."""
        docker("service", "update", "--quiet", *options, f"{self.name}_{service}")


def inspect(container: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    return dict(json.loads(docker("inspect", container))[0])


def is_healthy(container: str) -> bool:
    state = inspect(container)["State"]
    return bool(state["Running"] and state["Health"]["Status"] == "healthy")


def kill_server(container: str) -> None:
    """End it from outside, as a crash does: the engine's own kill counts as a stop."""
    init = int(inspect(container)["State"]["Pid"])
    assert init > 1, f"{container} is not running"
    [pid] = map(int, Path(f"/proc/{init}/task/{init}/children").read_text().split())
    assert pid > 1
    os.kill(pid, 9)


def crash(container: str) -> float:
    """Kill it, and wait until the engine has it back: seconds until it is healthy."""
    started = inspect(container)["State"]["StartedAt"]
    killed = time.monotonic()
    kill_server(container)

    def is_back() -> bool:
        return inspect(container)["State"]["StartedAt"] != started and is_healthy(container)

    wait_until(is_back, "it to be back", START_TIMEOUT_S)
    return time.monotonic() - killed


@contextmanager
def project(name: str, **env: str) -> Iterator[Project]:
    """Its services, not yet started; nothing is left of them afterwards."""
    made = Project(f"medusa-test-{name}-{os.getpid()}", env)
    try:
        yield made
    except BaseException:
        print(made.compose("logs", "--no-color", "--tail", "200"))
        raise
    finally:
        made.compose("down", "--volumes", "--remove-orphans", "--timeout", "60")
