"""The settings of both processes as the documents show them.

`python -m tests.structure.settings tables` prints the tables of docs/CONFIGURATION.md, `... env`
prints .env.example.
"""

from __future__ import annotations

import sys

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

import api.config
import model_server.config

PROCESSES: dict[str, type[BaseSettings]] = {
    "Model server": model_server.config.ModelServerSettings,
    "Gateway": api.config.Settings,
}
COMPOSE = (
    "# ---- Docker Compose",
    "",
    "# What `docker compose` reads: this for an NVIDIA GPU; :deployment/compose.monitoring.yml",
    "# adds Prometheus and Grafana. MODEL_PATH is a path in /models then.",
    "#COMPOSE_FILE=docker-compose.yml:deployment/compose.cuda.yml",
    "",
    "# Folder or volume mounted at /models.",
    "#MODELS=models",
    "",
    "# Folder or volume mounted at /keys, for API_KEYS_FILE=/keys/NAME.",
    "#KEYS=keys",
    "",
    "# What a container gets to stop; more than DRAIN_TIMEOUT.",
    "#STOP_GRACE_PERIOD=60s",
    "",
    "# Memory that each tier may use.",
    "#GATEWAY_MEMORY=1g",
    "#MODEL_SERVER_MEMORY=16g",
    "",
    "# CPUs that each model server may use; 0: all. Several on one machine share them.",
    "#MODEL_SERVER_CPUS=0",
)


def default(field: FieldInfo) -> str:
    """A default as it is written in the environment."""
    if field.default_factory:
        return ""  # looked for at start
    value = field.default
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def rows(settings: type[BaseSettings]) -> dict[str, tuple[str, str]]:
    """Default and description of every setting, by the name of its variable."""
    return {
        name.upper(): (default(field), field.description or "")
        for name, field in settings.model_fields.items()
    }


def in_words(value: str) -> str:
    """A default as the document says it."""
    return f"`{value}`" if value else "empty"


def table(settings: type[BaseSettings]) -> str:
    """The table of one process."""
    lines = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, (value, description) in rows(settings).items():
        lines.append(f"| `{name}` | {in_words(value)} | {description} |")
    return "\n".join(lines) + "\n"


def env_example() -> str:
    """`.env.example`: every setting once, commented out, with its default."""
    lines = [
        "# Settings of both processes, with their defaults. Copy to .env, which `make run` reads,",
        "# and take the # off what you change. A variable of the environment wins over .env.",
    ]
    seen: set[str] = set()
    for title, settings in PROCESSES.items():
        lines += ["", f"# ---- {title}"]
        for name, (value, description) in rows(settings).items():
            if name not in seen:
                lines += ["", f"# {description}", f"#{name}={value}"]
                seen.add(name)
    lines += ["", *COMPOSE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["env"]:
        print(env_example(), end="")
    else:
        print("\n".join(f"{title}:\n\n{table(PROCESSES[title])}" for title in PROCESSES))
