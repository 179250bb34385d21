"""What Kubernetes is given: kustomizations as they are rendered, and who selects whom in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.deployment.programs import run, tool
from tests.structure.modules import ROOT

KUBERNETES = ROOT / "deployment" / "kubernetes"
# Each can be added to any overlay, in this order.
COMPONENTS = ("vicuna-7b", "nvidia-gpu", "api-keys", "monitoring", "autoscaling")

Manifest = dict[str, Any]
Labels = dict[str, str]


def render(folder: Path) -> str:
    """A kustomization's manifests, by kustomize or the one in kubectl."""
    if kustomize := tool("kustomize"):
        return run(kustomize, "build", folder)
    kubectl = tool("kubectl")
    assert kubectl, "tests are skipped without it. This is a bug."
    return run(kubectl, "kustomize", folder)


def with_components(folder: Path, names: Sequence[str]) -> Path:
    """A kustomization in `folder`: an overlay as a user writes one, with these components."""
    kubernetes = os.path.relpath(KUBERNETES, folder.resolve())
    content = {
        "namespace": "medusa",
        "resources": [f"{kubernetes}/base"],
        "components": [f"{kubernetes}/components/{name}" for name in names],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


def matches(selector: Manifest, labels: Labels) -> bool:
    """Whether a label selector is met; an empty one always is."""
    assert selector.keys() <= {"matchLabels"}, "other selectors are not understood here"
    wanted: Labels = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment."""

    deployment: Manifest

    @property
    def name(self) -> str:
        return str(self.deployment["metadata"]["name"])

    @property
    def labels(self) -> Labels:
        labels: Labels = self.deployment["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> Manifest:
        spec: Manifest = self.deployment["spec"]["template"]["spec"]
        return spec

    @property
    def containers(self) -> list[Manifest]:
        """Those that prepare and those that serve."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def server(self) -> Manifest:
        """The one that serves."""
        (container,) = self.spec["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def ports(self) -> dict[str, int]:
        """The server's ports by name."""
        return {port["name"]: port["containerPort"] for port in self.server["ports"]}

    def port(self, wanted: str | int) -> int | None:
        """The number of a port given by name or number, if the pod has it."""
        numbers = {str(number): number for number in self.ports.values()}
        return (self.ports | numbers).get(str(wanted))


@dataclass(frozen=True)
class Manifests:
    """One rendering."""

    text: str

    @cached_property
    def all(self) -> list[Manifest]:
        return list(yaml.safe_load_all(self.text))

    def of(self, kind: str) -> list[Manifest]:
        return [each for each in self.all if each["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    @cached_property
    def pods(self) -> list[Pod]:
        return [Pod(each) for each in self.of("Deployment")]

    def pod(self, name: str) -> Pod:
        return Pod(self.named("Deployment", name))

    def selected(self, selector: Manifest) -> list[str]:
        """The pods that a selector in the same namespace means."""
        return [pod.name for pod in self.pods if matches(selector, pod.labels)]

    def environment(self, pod: Pod) -> dict[str, str]:
        """The variables of the server's container, as they will be."""
        found: dict[str, str] = {}
        for source in pod.server["envFrom"]:
            found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in pod.server.get("env", []):
            found[variable["name"]] = _value(variable, pod.server)
        return found

    def policies(self, pod: Pod, direction: str) -> Iterator[Manifest]:
        """The network policies that hold for a pod, `Ingress` or `Egress`."""
        for policy in self.of("NetworkPolicy"):
            spec = policy["spec"]
            if direction in spec["policyTypes"] and matches(spec["podSelector"], pod.labels):
                yield spec


def _value(variable: Manifest, container: Manifest) -> str:
    if "value" in variable:
        return str(variable["value"])
    field = variable["valueFrom"]["resourceFieldRef"]
    assert field["containerName"] == container["name"]
    assert field["divisor"] == "1"
    bound, resource = field["resource"].split(".")
    return str(container["resources"][bound][resource])
