"""Arrows only point down: each module sits on a floor and imports from it or from below."""

from __future__ import annotations

import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.structure.modules import ROOT, Module, is_in, modules

# From the ground up. The longest name that fits decides; tier 1 sees one folder of tier 2.
FLOORS = {
    "api": [
        (
            "api.config",
            "api.errors",
            "api.metrics",
            "api.logs",
            "api.waiting",
            "api.http.paths",
            "api.markdown",
        ),
        (
            *("api.requests", "api.admission.permits", "api.admission.rates", "api.admission.keys"),
            *("api.upstream.retry", "api.upstream.discovery", "api.upstream.balancer"),
            "api.upstream.breaker",
        ),
        ("api.request", "api.upstream.server"),
        ("api.spans", "api.upstream.call"),
        ("api.upstream.pool",),
        ("api.batcher",),
        ("api.gateway", "api.responses"),
        ("api.admission.control", "api.http.body_limit", "api.http.access_log"),
        ("api.routes",),
        ("api.app",),
        ("api.http.protocol", "api.http.workers"),
        ("api.__main__",),
    ],
    "model_server": [
        (
            *("contract.protocol", "contract.log_format", "contract.traces"),
            *("contract.variables", "contract.connections", "places", "cgroups"),
        ),
        ("contract.questions", "config", "errors", "metrics", "kept"),
        ("sampling", "llama", "guide", "logs", "spans"),
        (
            *("engine.cost", "engine.kv", "engine.kv_ops", "engine.leaves"),
            *("engine.detokenizer", "engine.template_source"),
        ),
        ("speculation",),
        ("medusa", "engine.sequence", "engine.plan", "engine.chat_template", "engine.infilling"),
        (
            *("speculation.drafter", "engine.prompt", "engine.intake", "engine.verifier"),
            *("engine.profiler", "engine.exactness", "engine.attention"),
            *("engine.events", "engine.layout", "engine.memory"),
        ),
        ("engine.scheduler", "engine.runner", "engine.suspects"),
        ("engine.engine",),
        ("engine.startup", "engine.watchdog", "engine.rehearsal"),
        ("app", "tools", "training"),
        ("__main__",),
    ],
}
FLOORS["model_server"] = [
    tuple(f"model_server.{name}" for name in floor) for floor in FLOORS["model_server"]
]

# What a person runs beside the server, and what the server runs as processes of their own.
APART = ("model_server.tools", "model_server.training")
CHILDREN = (
    "model_server.llama.matmuls",
    "model_server.llama.own_trial",
    "model_server.engine.rehearsal",
)

# Packages of others, and the only modules of ours that may import them.
RESERVED = {
    # The quantizer calls llama.cpp in a process of its own: nothing that serves needs it.
    ("llama_cpp", "ctypes"): ("model_server.llama", "model_server.tools.quantizer"),
    ("llguidance",): ("model_server.guide", "model_server.llama.vocab"),
    ("fastapi",): ("api.app", "api.routes", "api.http.workers", "model_server.app"),
    ("torch",): ("model_server.training", "model_server.tools"),
    ("matplotlib",): ("model_server.tools.doctor.picture",),
    ("numpy",): ("model_server",),
    ("asyncio", "anyio"): ("api", "model_server.app", "model_server.__main__"),
    ("httpx",): ("api",),
    ("huggingface_hub", "httpx2"): ("model_server.tools",),
    ("uvicorn",): ("api.http", "model_server.__main__"),
    ("httptools",): ("api.http.protocol",),
}

# What both tiers share. The gateway's image has this of the model server, and nothing else.
CONTRACT = [
    f"model_server.contract.{name}"
    for name in ("protocol", "questions", "log_format", "traces", "variables", "connections")
]

PURE = [
    "api.upstream.balancer",
    *CONTRACT,
    "model_server.sampling",
    "model_server.engine.cost",
    "model_server.engine.kv",
    "model_server.engine.leaves",
    "model_server.engine.scheduler",
    "model_server.engine.suspects",
    "model_server.engine.detokenizer",
    "model_server.speculation.lookup",
    "model_server.speculation.tree",
    "model_server.speculation.confidence",
    "model_server.speculation.verify",
    "model_server.speculation.policy",
    "model_server.speculation.drafter",
]


def _floor(name: str) -> int | None:
    """That of the longest name which holds this one."""
    floors = enumerate(FLOORS[name.partition(".")[0]])
    known = [(len(package), n) for n, floor in floors for package in floor if is_in(name, package)]
    return max(known)[1] if known else None


def _in_tier(tier: str) -> list[Module]:
    """Modules that hold code; the packages' own `__init__.py` are checked to hold none."""
    found = (module for module in modules() if module.name.partition(".")[0] == tier)
    return [module for module in found if module.path.name != "__init__.py"]


@pytest.mark.parametrize("tier", FLOORS)
def test_every_module_has_a_floor(tier: str) -> None:
    assert [module.name for module in _in_tier(tier) if _floor(module.name) is None] == []


@pytest.mark.parametrize("tier", FLOORS)
def test_no_module_imports_from_above(tier: str) -> None:
    upward = [
        f"{module.name} -> {name}"
        for module in _in_tier(tier)
        for name in module.imports_any(tier)
        if (_floor(name) or 0) > (_floor(module.name) or 0)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module.name for module in modules()}
    TopologicalSorter({m.name: m.imports & names for m in modules()}).prepare()


def test_the_gateway_sees_only_the_contract_of_the_model_server() -> None:
    seen = {name for module in _in_tier("api") for name in module.imports_any("model_server")}
    assert seen == set(CONTRACT)


def test_the_model_server_never_imports_the_gateway() -> None:
    assert [m.name for m in _in_tier("model_server") if m.imports_any("api")] == []


def test_the_contract_imports_nothing_of_ours() -> None:
    contract = [module for module in modules() if is_in(module.name, "model_server.contract")]
    assert {module.name for module in contract} == {"model_server.contract", *CONTRACT}
    seen = {name for module in contract for name in module.imports_any("api", "model_server")}
    assert seen <= set(CONTRACT)


def test_the_gateways_image_holds_only_the_contract_of_the_model_server() -> None:
    dockerfile = (ROOT / "deployment" / "Dockerfile.gateway").read_text()
    assert re.findall(r"^COPY (model_server\S*) /app/(\S+)$", dockerfile, re.MULTILINE) == [
        ("model_server/__init__.py", "model_server/"),
        ("model_server/contract", "model_server/contract"),
    ]
    assert len(re.findall("^COPY.* model_server", dockerfile, re.MULTILINE)) == 2


def test_speculation_needs_no_heads() -> None:
    """Other drafters can join the tree."""
    found = [module for module in modules() if is_in(module.name, "model_server.speculation")]
    medusa_or_llama = ("model_server.medusa", "model_server.llama")
    assert [module.name for module in found if module.imports_any(*medusa_or_llama)] == []


def test_what_only_tools_use_is_among_the_tools() -> None:
    by_name = {module.name: module for module in modules()}
    waiting, reached = ["model_server.__main__", *CHILDREN], set[str]()
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += by_name[name].imports & by_name.keys()
    served = [m.name for m in _in_tier("model_server") if not is_in(m.name, *APART)]
    assert [name for name in served if name not in reached] == []


def test_nothing_imports_tools_or_training() -> None:
    others = [module for module in modules() if not is_in(module.name, *APART)]
    assert [module.name for module in others if module.imports_any(*APART)] == []


@pytest.mark.parametrize("packages", RESERVED, ids=lambda packages: packages[0])
def test_foreign_packages_stay_where_they_belong(packages: tuple[str, ...]) -> None:
    elsewhere = [
        f"{module.name} -> {name}"
        for module in modules()
        if not is_in(module.name, *RESERVED[packages])
        for name in module.imports_any(*packages)
    ]
    assert elsewhere == []


def test_package_files_are_empty_of_imports() -> None:
    packages = [module for module in modules() if module.path.name == "__init__.py"]
    assert [module.name for module in packages if module.imports] == []
    assert (ROOT / "model_server" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_load_no_native_library(name: str) -> None:
    _assert_not_loaded_by(name, ["llama_cpp", "torch", "fastapi", "asyncio"])


def test_the_gateway_loads_without_the_engine() -> None:
    _assert_not_loaded_by("api.app", ["llama_cpp", "numpy", "torch"])


def _assert_not_loaded_by(name: str, packages: list[str]) -> None:
    """In a fresh interpreter: what is loaded, however it came."""
    code = f"import {name}, sys; print(*[p for p in {packages} if p in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
