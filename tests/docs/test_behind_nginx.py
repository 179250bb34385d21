"""The configuration of docs/BEHIND-NGINX.md, run by nginx before both tiers."""

from __future__ import annotations

import json
import shlex
import signal
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import twin
from tests.deployment.programs import tool
from tests.docs.fenced import blocks
from tests.e2e.service import Service, serve, wait_until
from tests.ports import free_port

DOCUMENT = "docs/BEHIND-NGINX.md"
LIMIT = 4  # requests a minute, by client
AROUND = """
daemon off;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    {server}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """nginx, and the service behind it."""

    service: Service
    url: str
    trust: ssl.SSLContext

    def client(self, address: str) -> httpx.Client:
        """One that comes from an address of this machine."""
        transport = httpx.HTTPTransport(local_address=address, verify=self.trust)
        return httpx.Client(base_url=self.url, transport=transport, timeout=60)


@pytest.fixture(scope="module")
def proxy(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    nginx = tool("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed: apt install nginx, or let .ci/run fetch it")
    folder = tmp_path_factory.mktemp("nginx")
    certificate = shlex.split(blocks(DOCUMENT, "sh")[1].partition("\ncurl")[0].replace("\\\n", ""))
    subprocess.run(certificate, cwd=folder, check=True, capture_output=True)
    with serve(twin_path, folder, rate_limit_requests=LIMIT) as service:
        port = free_port()
        (folder / "nginx.conf").write_text(_configuration(folder, service.url, port))
        log = folder / "error.log"
        process = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", log, "-p", folder])
        trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        made = Proxy(service, f"https://localhost:{port}", trust)
        try:
            wait_until(lambda: _listens(made) or process.poll() is not None, "nginx")
            assert process.poll() is None, log.read_text()
            yield made
        finally:
            process.send_signal(signal.SIGQUIT)
            code = process.wait(20)
        assert code == 0, log.read_text()


def _configuration(folder: Path, gateway: str, port: int) -> str:
    """The document's, with what is this test's own in place of what is a machine's."""
    [server] = blocks(DOCUMENT, "nginx")
    for shown, ours in (
        ("127.0.0.1:8000", gateway.removeprefix("http://")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/certs/llm.example.com.pem", str(folder / "cert.pem")),
        ("/etc/ssl/private/llm.example.com.key", str(folder / "key.pem")),
    ):
        assert server.count(shown) == 1, shown
        server = server.replace(shown, ours)
    return AROUND.format(folder=folder, server=server)


def _listens(proxy: Proxy) -> bool:
    try:
        with proxy.client("127.0.0.1") as client:
            return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_answers_come_over_tls(proxy: Proxy) -> None:
    prompt = twin.prompt(5)
    with proxy.client("127.0.0.5") as client:
        asked = {"prompt": prompt, "max_tokens": 20, "temperature": 0}
        answer = client.post("/v1/completions", json=asked).json()
    assert answer["choices"][0]["text"] == twin.text(twin.answer(prompt, 20))


def test_metrics_stay_inside(proxy: Proxy) -> None:
    with proxy.client("127.0.0.1") as client:
        for path in ("/metrics", "/metrics/", "/%6detrics", "/metrics/?a", "/v1/../metrics"):
            assert client.get(path).status_code == 403, path


def test_limits_are_counted_by_client(proxy: Proxy) -> None:
    """What a client says of its own address is not believed."""
    asked = {"prompt": twin.prompt(5), "max_tokens": 1}
    with proxy.client("127.0.0.2") as one, proxy.client("127.0.0.3") as other:
        seen = [one.post("/v1/completions", json=asked).status_code for _ in range(LIMIT + 1)]
        assert seen == [200] * LIMIT + [429]
        told = {"x-forwarded-for": "192.0.2.1"}
        assert one.post("/v1/completions", json=asked, headers=told).status_code == 429
        assert other.post("/v1/completions", json=asked).status_code == 200


@pytest.mark.slow
def test_a_stream_arrives_as_it_is_made(proxy: Proxy) -> None:
    """What the model made before it was stopped is there; while it says nothing, heartbeats are."""
    prompt, num_tokens = twin.prompt(5), 400
    model_server = proxy.service.model_server.popen
    asked = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "stream": True}
    with (
        proxy.client("127.0.0.4") as client,
        client.stream("POST", "/v1/completions", json=asked) as answer,
    ):
        lines = answer.iter_lines()
        model_server.send_signal(signal.SIGSTOP)
        try:
            before = [line for line in iter(lines.__next__, ": ping") if line]
        finally:
            model_server.send_signal(signal.SIGCONT)
        rest = [line for line in lines if line.startswith("data: ")]
    assert before
    assert rest[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in (*before, *rest[:-1])]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == twin.text(twin.answer(prompt, num_tokens))
