"""The metrics of both tiers as the document shows them.

`python -m tests.structure.metrics` prints the tables of deployment/METRICS.md.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

import api.metrics
import model_server.metrics

REGISTRIES = {
    "Gateway": api.metrics.GatewayMetrics().registry,
    "Model server": model_server.metrics.ModelServerMetrics().registry,
}


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def sample_names(registry: CollectorRegistry) -> set[str]:
    """The names that are scraped, those of labels that have not come up yet too."""
    return {
        f"{each._name}{suffix}"
        for each in registry._collector_to_names
        if isinstance(each, MetricWrapperBase)
        for suffix in SUFFIXES[str(each._type)]
    }


def rows(registry: CollectorRegistry) -> list[str]:
    """A row for each metric: name as it is scraped, type, labels, meaning."""
    # The public way lists samples, and a metric with labels has none yet.
    return [_row(each) for each in registry._collector_to_names if _is_ours(each)]


def _is_ours(collector: object) -> bool:
    return not isinstance(collector, ProcessCollector)


def _row(metric: object) -> str:
    assert isinstance(metric, MetricWrapperBase)
    name = metric._name + ("_total" if metric._type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |"


def tables() -> str:
    """One table a tier."""
    head = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
    return "\n".join(
        f"## {title}\n\n{head}" + "\n".join(rows(registry)) + "\n"
        for title, registry in REGISTRIES.items()
    )


if __name__ == "__main__":
    print(tables(), end="")
