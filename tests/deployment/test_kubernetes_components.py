"""What each component of the Kubernetes manifests adds, against the program it is written for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from api.admission.keys import RELOAD_S, Keys, new_key
from model_server.config import ModelServerSettings
from model_server.tools import download
from model_server.tools.preset_files import PresetFiles
from model_server.tools.presets import PRESETS
from tests.deployment.manifests import (
    COMPONENTS,
    KUBERNETES,
    Manifests,
    render,
    with_components,
)
from tests.deployment.programs import tool
from tests.structure import metrics

pytestmark = pytest.mark.skipif(
    tool("kustomize", "kubectl") is None,
    reason="neither kustomize nor kubectl is installed: nothing can be rendered",
)

Rendered = Callable[[Sequence[str]], Manifests]


@pytest.fixture
def rendered(tmp_path: Path) -> Rendered:
    """The base with some components."""
    return lambda names: Manifests(render(with_components(tmp_path, names)))


def readme() -> str:
    return (KUBERNETES / "README.md").read_text()


def test_each_can_be_added_alone(rendered: Rendered) -> None:
    assert {path.name for path in (KUBERNETES / "components").iterdir()} == set(COMPONENTS)
    base = rendered([]).text
    for name in COMPONENTS:
        assert rendered([name]).text != base
        assert f"components/{name}" in readme()


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_overlays_offer_every_component(overlay: str) -> None:
    text = (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
    offered = re.findall(r"components/([\w-]+)", text)
    assert offered == [name for name in COMPONENTS if overlay == "cuda" or name != "nvidia-gpu"]


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_overlays_choose_the_image_for_every_container(overlay: str) -> None:
    manifests = Manifests(render(KUBERNETES / "overlays" / overlay))
    images = {each["image"] for each in manifests.pod("model-server").containers}
    assert images == {f"medusa-model-server:{overlay}"}


def test_what_is_downloaded_is_what_is_served(rendered: Rendered) -> None:
    manifests = rendered(["vicuna-7b"])
    pod = manifests.pod("model-server")
    (fetch,) = pod.spec["initContainers"]
    assert "command" not in fetch  # the image's runs a module of the project
    module, preset, quant_option, quant, out_option, folder = fetch["args"]
    assert (module, quant_option, out_option) == (download.__name__, "--quant", "--out")
    plan = PresetFiles(PRESETS[preset], quant, Path(folder))
    environment = manifests.environment(pod)
    assert plan.base == Path(environment["MODEL_PATH"])
    assert plan.heads == Path(environment["MEDUSA_PATH"])


def test_only_the_download_can_write_to_the_models(rendered: Rendered) -> None:
    pod = rendered(["vicuna-7b"]).pod("model-server")
    mounts = {
        each["name"]: mount
        for each in pod.containers
        for mount in each["volumeMounts"]
        if mount["mountPath"] == "/models"
    }
    assert {name: mount.get("readOnly", False) for name, mount in mounts.items()} == {
        "download": False,
        "model-server": True,
    }


def test_replicas_that_cannot_share_a_volume_or_gpu_are_replaced_without_a_surge(
    rendered: Rendered,
) -> None:
    for name in ("vicuna-7b", "nvidia-gpu"):
        manifests = rendered([name])
        spec = manifests.named("Deployment", "model-server")["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
        for claim in manifests.of("PersistentVolumeClaim"):
            assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
            assert spec["replicas"] == 1


def test_a_model_server_has_the_cores_and_memory_that_it_counts_on(rendered: Rendered) -> None:
    for names in ([], ["vicuna-7b"], ["nvidia-gpu"], ["vicuna-7b", "nvidia-gpu"]):
        manifests = rendered(names)
        pod = manifests.pod("model-server")
        for container in pod.containers:
            requests, limits = (container["resources"][each] for each in ("requests", "limits"))
            assert requests == {name: limits[name] for name in ("cpu", "memory")}
        limit = pod.server["resources"]["limits"]["cpu"]
        assert int(limit) > 0
        assert "N_THREADS" not in manifests.environment(pod)  # it heeds the limit by itself


def test_a_gpu_is_asked_for_by_what_decodes_alone(rendered: Rendered) -> None:
    containers = rendered(["vicuna-7b", "nvidia-gpu"]).pod("model-server").containers
    gpus = {each["name"]: each["resources"]["limits"].get("nvidia.com/gpu") for each in containers}
    assert gpus == {"download": None, "model-server": "1"}


def test_keys_are_read_where_the_secret_is(rendered: Rendered) -> None:
    manifests = rendered(["api-keys"])
    pod = manifests.pod("gateway")
    path = Path(manifests.environment(pod)["API_KEYS_FILE"])
    (volume,) = [each for each in pod.spec["volumes"] if "secret" in each]
    (mount,) = [each for each in pod.server["volumeMounts"] if each["name"] == volume["name"]]
    assert path.parent == Path(mount["mountPath"])
    assert "subPath" not in mount
    assert not volume["secret"].get("optional"), "without keys everybody would be let in"
    made = re.search(r"create secret generic (\S+) --from-file=(\S+)", readme())
    assert made is not None
    assert made.groups() == (volume["secret"]["secretName"], path.name)


def test_a_key_that_is_added_to_the_secret_is_known_soon(tmp_path: Path) -> None:
    # The kubelet writes another folder, and turns the link that the file's name leads through.
    (key, line), now = new_key("ann"), [0.0]
    for folder, lines in (("old", new_key("bob")[1]), ("new", line)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys.txt").write_text(lines)
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "keys.txt").symlink_to("..data/keys.txt")
    keys = Keys(tmp_path / "keys.txt", lambda: now[0])
    (tmp_path / "..tmp").symlink_to("new")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    now[0] = RELOAD_S
    assert keys.name_of(f"Bearer {key}") == "ann"


def test_autoscaling_asks_for_metrics_that_there_are(rendered: Rendered) -> None:
    spec = rendered(["autoscaling"]).named("ScaledObject", "model-server")["spec"]
    known = re.findall(r"medusa_\w+", metrics.tables())
    for trigger in spec["triggers"]:
        asked = re.findall(r"medusa_\w+", trigger["metadata"]["query"])
        assert asked
        assert set(asked) <= set(known)
        # A server is full at N_PARALLEL, and another takes minutes to come.
        assert (
            0
            < float(trigger["metadata"]["threshold"])
            < ModelServerSettings.model_construct().n_parallel
        )


def test_the_autoscaler_has_a_target_that_nobody_else_scales(rendered: Rendered) -> None:
    for names in (["autoscaling"], COMPONENTS):
        manifests = rendered(names)
        scaled = manifests.named("ScaledObject", "model-server")["spec"]
        target = manifests.named("Deployment", scaled["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]
        assert 1 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]


def test_the_autoscalers_prometheus_may_ask_the_model_servers(rendered: Rendered) -> None:
    manifests = rendered(["autoscaling"])
    allowed = manifests.named("NetworkPolicy", "model-server")["spec"]["ingress"][0]["from"]
    (namespace,) = [each["namespaceSelector"] for each in allowed if "namespaceSelector" in each]
    name = namespace["matchLabels"]["kubernetes.io/metadata.name"]
    triggers = manifests.named("ScaledObject", "model-server")["spec"]["triggers"]
    hosts = {trigger["metadata"]["serverAddress"].split("/")[2] for trigger in triggers}
    assert {host.split(".")[1] for host in hosts} == {name}
