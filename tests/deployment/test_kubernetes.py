"""The manifests without a cluster: schemas, references, and what they say about our programs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic_settings import BaseSettings

import api.config
import model_server.config
from api.app import create_app
from api.http.workers import LAST_WORDS_S
from api.upstream.pool import READY_WAIT_S
from model_server import app as model_app
from model_server.__main__ import _DRAIN_S as MODEL_DRAIN_S
from tests.deployment.manifests import (
    COMPONENTS,
    KUBERNETES,
    Manifest,
    Manifests,
    Pod,
    render,
    with_components,
)
from tests.deployment.programs import run, tool

pytestmark = pytest.mark.skipif(
    tool("kustomize", "kubectl") is None,
    reason="neither kustomize nor kubectl is installed: nothing can be rendered",
)

UID = 10_001
SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": api.config.Settings,
    "model-server": model_server.config.ModelServerSettings,
}
CUSTOM = {"ScaledObject", "PodMonitor"}  # kinds that a cluster learns from KEDA and Prometheus
BY_HAND = {"api-keys"}  # Secrets that README.md tells how to make


@pytest.fixture(scope="module", params=["cpu", "cuda", "everything"])
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Manifests:
    """Both overlays as they are, and one with every component."""
    folder = KUBERNETES / "overlays" / request.param
    if request.param == "everything":
        folder = with_components(tmp_path_factory.mktemp("overlay"), COMPONENTS)
    return Manifests(render(folder))


def settings(
    manifests: Manifests, name: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[BaseSettings, dict[str, str]]:
    """What a pod's process reads, and the variables that it reads it from."""
    environment = manifests.environment(manifests.pod(name))
    for field in SETTINGS[name].model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return SETTINGS[name](), environment


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_api_server_would_take_them(manifests: Manifests, tmp_path: Path, version: str) -> None:
    validate = tool("kubernetes-validate")
    if validate is None:
        pytest.skip("kubernetes-validate is not installed")
    (tmp_path / "all.yaml").write_text(manifests.text)
    said = run(validate, "--strict", "--kubernetes-version", version, tmp_path / "all.yaml")
    unknown = set(re.findall(r"schema for kind (\w+)", said))
    assert unknown <= CUSTOM
    known = [each for each in manifests.all if each["kind"] not in CUSTOM]
    assert said.count("passed for resource") == len(known)


def test_trivy_finds_nothing(manifests: Manifests, tmp_path: Path) -> None:
    trivy = tool("trivy")
    if trivy is None:
        pytest.skip("trivy is not installed")
    (tmp_path / "all.yaml").write_text(manifests.text)
    options = ("--skip-check-update", "--skip-version-check", "--quiet", "--exit-code", "1")
    ignored = KUBERNETES / ".trivyignore.yaml"
    cache = tmp_path / "cache"
    run(trivy, "config", *options, "--ignorefile", ignored, "--cache-dir", cache, tmp_path)


def test_everything_is_in_the_overlays_namespace(manifests: Manifests) -> None:
    assert {each["metadata"].get("namespace") for each in manifests.all} == {"medusa"}
    assert "namespace: " not in render(KUBERNETES / "base").replace("kubernetes.io/metadata", "")


@pytest.mark.parametrize("name", SETTINGS)
def test_selectors_match_the_pods_they_are_named_after(manifests: Manifests, name: str) -> None:
    deployment = manifests.named("Deployment", name)
    spread = manifests.pod(name).spec["topologySpreadConstraints"]
    selectors = [deployment["spec"]["selector"], *(each["labelSelector"] for each in spread)]
    selectors += [
        each["spec"]["selector"]
        for kind in ("PodDisruptionBudget", "PodMonitor")
        for each in manifests.of(kind)
        if each["metadata"]["name"] == name
    ]
    selectors.append({"matchLabels": manifests.named("Service", name)["spec"]["selector"]})
    assert len(selectors) >= 4
    assert [manifests.selected(selector) for selector in selectors] == [[name]] * len(selectors)


@pytest.mark.parametrize("name", SETTINGS)
def test_ports_and_probes_are_those_of_the_program(
    manifests: Manifests, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = manifests.pod(name)
    read, _ = settings(manifests, name, monkeypatch)
    assert pod.ports == {
        "http": getattr(read, "port" if name == "gateway" else "model_server_port")
    }
    (port,) = manifests.named("Service", name)["spec"]["ports"]
    assert pod.port(port["targetPort"]) == port["port"]
    probes = [
        pod.server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    ]
    assert {pod.port(probe["port"]) for probe in probes} == {port["port"]}
    assert {probe["path"] for probe in probes} <= paths(name)
    assert [probe["path"] for probe in probes[1:]] == ["/health", "/ready"]


def paths(name: str) -> set[str]:
    """What a program answers to."""
    app = model_app.create_app(model_app.AppState())
    if name == "gateway":
        app = create_app(api.config.Settings.model_construct())
    return set(app.openapi()["paths"])


def test_prometheus_finds_the_metrics(manifests: Manifests) -> None:
    for pod in manifests.pods:
        notes = pod.deployment["spec"]["template"]["metadata"]["annotations"]
        assert pod.port(int(notes["prometheus.io/port"])) is not None
        assert notes["prometheus.io/path"] in paths(pod.name)
    for monitor in manifests.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert manifests.pod(monitor["metadata"]["name"]).port(endpoint["port"]) is not None


@pytest.mark.parametrize("name", SETTINGS)
def test_the_program_takes_its_environment(
    manifests: Manifests, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, environment = settings(manifests, name, monkeypatch)
    assert {variable.lower() for variable in environment} <= type(read).model_fields.keys()


def test_what_is_referred_to_is_there(manifests: Manifests) -> None:
    used: dict[str, set[str]] = {"ConfigMap": set(), "PersistentVolumeClaim": set()}
    secrets = set()
    for pod in manifests.pods:
        used["ConfigMap"] |= {each["configMapRef"]["name"] for each in pod.server["envFrom"]}
        for volume in pod.spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                used["PersistentVolumeClaim"].add(volume["persistentVolumeClaim"]["claimName"])
            if "secret" in volume:
                secrets.add(volume["secret"]["secretName"])
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        mounts = [mount["name"] for each in pod.containers for mount in each["volumeMounts"]]
        assert set(mounts) == volumes
    for kind, names in used.items():
        assert {each["metadata"]["name"] for each in manifests.of(kind)} == names
    assert secrets <= BY_HAND


def test_the_gateway_looks_up_every_model_server(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, _ = settings(manifests, "gateway", monkeypatch)
    assert isinstance(read, api.config.Settings)
    (url,) = map(urlsplit, read.model_server_urls)
    service = manifests.named("Service", str(url.hostname))["spec"]
    assert service["clusterIP"] == "None"
    assert manifests.selected({"matchLabels": service["selector"]}) == ["model-server"]
    assert manifests.pod("model-server").port(url.port or 80) == url.port


def test_network_policies_let_through_what_must_pass_and_nothing_else(manifests: Manifests) -> None:
    gateway, server = manifests.pod("gateway"), manifests.pod("model-server")
    assert ingress(manifests, gateway) == [(["anybody"], 8000)]
    assert ingress(manifests, server) == [(["gateway", "namespace monitoring"], 8001)]
    assert sorted(egress(manifests, gateway)) == [("dns", 53), ("model-server", 8001)]
    downloads = [("dns", 53), ("outside", 443)] if server.spec.get("initContainers") else []
    assert sorted(egress(manifests, server)) == downloads


def ingress(manifests: Manifests, pod: Pod) -> list[tuple[list[str], int | None]]:
    """Who may ask a pod, at which of its ports."""
    rules = [rule for each in manifests.policies(pod, "Ingress") for rule in each["ingress"]]
    return [
        (
            [one for peer in rule.get("from", [{}]) for one in peers(manifests, peer)],
            pod.port(port["port"]),
        )
        for rule in rules
        for port in rule["ports"]
    ]


def egress(manifests: Manifests, pod: Pod) -> set[tuple[str, int]]:
    """Whom a pod may ask, at which port."""
    rules = [rule for each in manifests.policies(pod, "Egress") for rule in each["egress"]]
    return {
        (one, port["port"])
        for rule in rules
        for peer in rule["to"]
        for one in peers(manifests, peer)
        for port in rule["ports"]
    }


def peers(manifests: Manifests, peer: Manifest) -> list[str]:
    """Whom a peer of a network policy means, in words."""
    if not peer:
        return ["anybody"]
    if "ipBlock" in peer:
        return ["outside" if peer["ipBlock"].get("except") else "dns"]
    if "namespaceSelector" not in peer:
        return manifests.selected(peer["podSelector"])
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    pods = peer.get("podSelector", {}).get("matchLabels")
    return ["dns"] if pods == {"k8s-app": "kube-dns"} else [f"namespace {namespace}"]


def test_nobody_is_killed_while_it_drains(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, server = manifests.pod("gateway"), manifests.pod("model-server")
    read, _ = settings(manifests, "gateway", monkeypatch)
    assert isinstance(read, api.config.Settings)
    assert read.drain_timeout >= read.request_timeout
    pause = gateway.server["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pause + read.drain_timeout + LAST_WORDS_S
    assert gateway.spec["terminationGracePeriodSeconds"] > needed
    assert server.spec["terminationGracePeriodSeconds"] > MODEL_DRAIN_S


def test_a_busy_or_loading_pod_is_left_alone(manifests: Manifests) -> None:
    def patience(pod: str, kind: str) -> int:
        probe = manifests.pod(pod).server[f"{kind}Probe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    assert patience("model-server", "startup") >= 30 * 60
    assert patience("model-server", "liveness") >= 60
    assert patience("gateway", "readiness") > READY_WAIT_S


def test_containers_can_do_nothing_that_they_need_not(manifests: Manifests) -> None:
    for pod in manifests.pods:
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        # A Service's name becomes variables, MODEL_SERVER_PORT=tcp://... among them.
        assert pod.spec["enableServiceLinks"] is False
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
