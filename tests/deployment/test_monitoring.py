"""What Prometheus and Grafana are told, held against what both tiers really show."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.errors import STATUS
from tests import twin, twin_heads
from tests.deployment.prometheus import Prometheus, program, promtool, watching
from tests.e2e.service import Service, serve, wait_until
from tests.structure.metrics import REGISTRIES, sample_names
from tests.structure.modules import ROOT

MONITORING = ROOT / "deployment" / "monitoring"
RULES = MONITORING / "rules.yml"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/medusa.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NUM_COLUMNS = 24
# What Prometheus itself knows.
ITS_OWN = {"up", "ALERTS"}
# Nothing of these while all is well.
QUIET = ("_retries_total", "_rate_limited_total", "ALERTS{")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def shown(expression: str, interval: str) -> str:
    """The expression as Grafana sends it, with every model server chosen."""
    return expression.replace("$__rate_interval", interval).replace("$server", ".*")


def expressions(interval: str = "1m") -> list[str]:
    """All that the dashboard asks for."""
    return [shown(target["expr"], interval) for panel in PANELS for target in panel["targets"]]


def names(expression: str) -> set[str]:
    """The metrics that an expression names: what is selected, or aggregated bare."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\bmedusa_\w+|\bup\b|\bALERTS\b", bare))


@pytest.mark.parametrize("expression", [*expressions(), *(each["expr"] for each in alerts())])
def test_an_expression_names_only_metrics_that_are_scraped(expression: str) -> None:
    scraped = ITS_OWN.union(*(sample_names(each) for each in REGISTRIES.values()))
    assert names(expression)
    assert names(expression) <= scraped


def test_the_variables_name_metrics_that_are_scraped() -> None:
    scraped = set().union(*(sample_names(each) for each in REGISTRIES.values()))
    variables = {each["name"]: each["query"] for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"] == "prometheus"
    assert names(variables["server"]["query"]) <= scraped


def test_alerts_name_reasons_that_the_gateway_gives() -> None:
    found = re.findall(r'reason=~"([^"]+)"', RULES.read_text())
    assert found
    assert {reason for each in found for reason in each.split("|")} <= STATUS.keys()


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "action"}
    assert len(alert["annotations"]["action"]) > 60
    assert alert["alert"] in (MONITORING / "rules_test.yml").read_text(), "it has no test"


def test_both_tiers_are_found_by_name_on_the_ports_they_serve() -> None:
    jobs = read(MONITORING / "prometheus.yml")["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"] for job in jobs}
    assert {name: [(each["names"], each["port"]) for each in found[name]] for name in found} == {
        "gateway": [(["gateway"], 8000)],
        "model-server": [(["model-server"], 8001)],
    }
    assert all(each["type"] == "A" for sources in found.values() for each in sources)
    named = set(re.findall(r'job="([^"]*)"', RULES.read_text()))
    assert named <= found.keys()
    # The operator for Kubernetes names jobs otherwise, unless it is told.
    monitors = ROOT / "deployment/kubernetes/components/monitoring/pod-monitors.yaml"
    told = [
        relabeling["replacement"]
        for monitor in yaml.safe_load_all(monitors.read_text())
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
        if relabeling["targetLabel"] == "job"
    ]
    assert sorted(told) == sorted(named)


def test_promtool_is_content_with_the_configuration() -> None:
    promtool("check", "config", MONITORING / "prometheus.yml")


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", MONITORING / "rules_test.yml")


def test_promtool_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": each} for i, each in enumerate(expressions())]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert re.fullmatch(r"[A-Z].{20,}\.", panel["description"]), "a sentence"
    assert panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"]
    assert panel["targets"]
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert {each["uid"] for each in sources} == {"${datasource}"}


def test_panels_lie_side_by_side_under_titled_rows() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert all(panel["title"] for panel in everything)
    places = [panel["gridPos"] for panel in everything]
    assert all(0 <= place["x"] <= place["x"] + place["w"] <= NUM_COLUMNS for place in places)
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_the_data_source_that_is_provisioned_is_scraped_as_often_as_it_says() -> None:
    (source,) = read(MONITORING / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    interval = read(MONITORING / "prometheus.yml")["global"]["scrape_interval"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == interval


def test_the_overlay_is_locked_down() -> None:
    overlay = read(ROOT / "deployment" / "compose.monitoring.yml")
    assert overlay["services"].keys() == {"prometheus", "grafana"}
    for service in overlay["services"].values():
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d+\.\d+\.\d+\}", service["image"])
        assert service["user"].split(":")[0] not in ("0", "root")
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"]


def test_grafana_keeps_its_plugins_and_has_no_known_password() -> None:
    grafana = read(ROOT / "deployment" / "compose.monitoring.yml")["services"]["grafana"]
    settings = grafana["environment"]
    assert settings["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_prometheus_is_in_a_network_of_each_tier_and_of_grafana() -> None:
    services = read(ROOT / "docker-compose.yml")["services"]
    services |= read(ROOT / "deployment" / "compose.monitoring.yml")["services"]
    networks = {name: set(each.get("networks", ["default"])) for name, each in services.items()}
    for name in ("gateway", "model-server", "grafana"):
        assert networks["prometheus"] & networks[name]


def test_the_overlay_mounts_what_is_there() -> None:
    overlay = read(ROOT / "deployment" / "compose.monitoring.yml")
    mounts = [each for service in overlay["services"].values() for each in service["volumes"]]
    for source, *_, mode in (mount.split(":") for mount in mounts):
        if source.startswith("."):
            assert mode == "ro"
            assert (ROOT / source).is_dir()
        else:
            assert source in overlay["volumes"]
    (provider,) = read(MONITORING / "grafana/provisioning/dashboards/medusa.yml")["providers"]
    folder = "./deployment/monitoring/grafana/dashboards"
    assert f"{folder}:{provider['options']['path']}:ro" in mounts


def test_every_panel_shows_something_of_a_service_at_work(twin_path: Path, tmp_path: Path) -> None:
    program("prometheus")
    heads = twin_heads.write(tmp_path / "heads.gguf")
    with serve(twin_path, tmp_path, medusa_path=heads, max_wait_time=0.01) as service:
        hosts = {"gateway": service.url, "model-server": service.model_url}
        targets = {job: [url.removeprefix("http://")] for job, url in hosts.items()}
        with watching(targets, RULES, tmp_path) as prometheus:
            wait_until(lambda: sum(prometheus.query("up")) == len(hosts), "the first scrapes")
            wait_until(lambda: not missing(prometheus, service), "every panel to have data", 20)
            assert prometheus.query('ALERTS{alertstate="firing"}') == []


def missing(prometheus: Prometheus, service: Service) -> list[str]:
    """Expressions of the dashboard that have no data, those that need a mishap left out."""
    ask(service)
    asked = [each for each in expressions("10s") if not any(word in each for word in QUIET)]
    return [each for each in asked if not prometheus.query(each)]


def ask(service: Service) -> None:
    """A drafted answer, and a request that is refused by each tier."""
    body = {"prompt": twin.prompt(9), "max_tokens": 200, "temperature": 0}
    with service.client() as client:
        drafted = client.post("/v1/completions", json={**body, "speculation": {"mode": "tree"}})
        assert drafted.status_code == 200
        assert client.post("/v1/completions", json={**body, "n": 0}).status_code == 400
        wrong = client.post("/v1/completions", json={**body, "grammar": "root ::= nothing"})
        assert wrong.status_code == 400
