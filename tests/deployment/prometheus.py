"""Debian's Prometheus on loopback, and its promtool; without them their tests are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deployment.programs import tool
from tests.e2e.service import wait_until
from tests.ports import free_port


def promtool(*arguments: str | Path) -> str:
    """What it says; AssertionError with that if it is not content."""
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def program(name: str) -> str:
    """Its path, or the test is skipped."""
    found = tool(name)
    if found is None:
        pytest.skip(f"there is no {name} (Debian: apt install prometheus)")
    return found


class Prometheus:
    """Asked through its HTTP API."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def answers(self) -> bool:
        """Whether it can be asked."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[float]:
        """The values that it has now, those that are no number left out."""
        answer = self._client.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        values = [float(each["value"][1]) for each in answer["data"]["result"]]
        return [value for value in values if not isnan(value)]


@contextmanager
def watching(targets: Mapping[str, list[str]], rules: Path, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes host:port `targets` by job four times a second, and knows `rules`."""
    every = "250ms"
    jobs: list[dict[str, Any]] = [
        {"job_name": job, "static_configs": [{"targets": hosts}]} for job, hosts in targets.items()
    ]
    timing = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config = {"global": timing, "rule_files": [str(rules)], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
            prometheus = Prometheus(client)
            wait_until(prometheus.answers, "Prometheus to answer")
            yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=30)
