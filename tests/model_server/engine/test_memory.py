from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from model_server.config import ModelServerSettings
from model_server.engine import memory, startup
from model_server.engine.layout import context_options
from model_server.errors import SettingError
from model_server.llama import kernels
from model_server.llama.model import Model
from model_server.metrics import ModelServerMetrics
from tests import twin

MIB = 2**20
needs_kernels = pytest.mark.skipif(
    not kernels.path().exists(), reason="this build has no kernels of its own"
)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """One of 100 MiB, 60 of them available."""
    write(tmp_path / "proc/meminfo", "MemTotal: 102400 kB\nMemAvailable: 61440 kB\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def group(folder: Path, names: tuple[str, str], limit: object, used: int, stat: str) -> None:
    for name, value in zip(names, (limit, used), strict=True):
        write(folder / name, value)
    write(folder / "memory.stat", stat)


def free(machine: Path, line: str) -> float:
    write(machine / "proc/self/cgroup", line)
    return memory.available(machine / "proc", machine / "groups")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_without_a_limit_it_is_the_machines(machine: Path) -> None:
    group(machine / "groups", V2, "max", 7, "inactive_file 3\n")
    assert free(machine, "0::/\n") == 60 * MIB
    assert memory.available(machine / "none", machine / "none") == math.inf


@pytest.mark.parametrize("folder", ["", "a.slice/b.service"])
def test_the_limit_of_a_group_around_counts(machine: Path, folder: str) -> None:
    """What the group holds of files on disk can be had back."""
    group(machine / "groups/a.slice", V2, 30 * MIB, 20 * MIB, f"inactive_file {4 * MIB}\n")
    group(machine / "groups", V2, "max", 7, "inactive_file 3\n")
    assert free(machine, f"0::/{folder}\n") == (14 * MIB if folder else 60 * MIB)


def test_version_1_has_other_names(machine: Path) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {2 * MIB}\n"
    group(machine / "groups/memory/a", V1, 30 * MIB, 20 * MIB, stat)
    group(machine / "groups/memory", V1, 2**63 - 4_096, 7, stat)
    assert free(machine, "4:memory:/a\n0::/\n") == 12 * MIB
    assert free(machine, "4:memory:/\n0::/\n") == 60 * MIB


def test_something_is_known_here() -> None:
    assert 0 < memory.available() < 2**60


def test_what_a_step_gives_counts_beside_the_pool(
    twin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(twin_path, 0)
    options = context_options(ModelServerSettings(model_path=twin_path, n_threads=1), 256)
    pool = options.num_cells * 4 * model.kv_values  # K and V in F16
    outputs = 4 * 512 * (twin.TINY.vocab_size + model.hidden_size)
    monkeypatch.setattr(memory, "available", lambda: pool + outputs)
    memory.require(options, model)
    monkeypatch.setattr(memory, "available", lambda: pool + outputs - 1)
    with pytest.raises(SettingError, match=rf"at most {options.num_cells - 1} cells fit"):
        memory.require(options, model)
    monkeypatch.setattr(memory, "available", lambda: pool)
    with pytest.raises(SettingError, match="a step"):
        memory.require(options, model)
    model.close()


@needs_kernels
def test_a_start_counts_what_own_attention_needs(
    twin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelServerSettings(
        model_path=twin_path, n_threads=1, model_context_size=256, cpu_kernels="auto"
    )
    model = Model(twin_path, 0)
    options = context_options(settings, 256)
    outputs = 4 * 512 * (twin.TINY.vocab_size + model.hidden_size)
    free = options.num_cells * 4 * model.kv_values + outputs
    model.close()
    monkeypatch.setattr(memory, "available", lambda: free)
    with pytest.raises(SettingError, match="KV_CACHE_TOKENS"):
        startup.load(settings, ModelServerMetrics())
    startup.load(settings, ModelServerMetrics(), distrust="for a test").close()


@pytest.mark.parametrize(("layers", "share"), [(-1, 0), (1, 0.5), (2, 0), (99, 0)])
def test_keys_and_values_of_a_gpu_are_not_counted(
    layers: int, share: float, twin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(twin_path, 0)
    assert model.share_on_cpu == 1
    monkeypatch.setattr(model, "uses_gpu", True)
    monkeypatch.setattr(model, "_n_gpu_layers", layers)
    assert model.share_on_cpu == share
    options = context_options(ModelServerSettings(model_path=twin_path, n_threads=1), 256)
    monkeypatch.setattr(memory, "available", lambda: 0)
    if share:
        with pytest.raises(SettingError):
            memory.require(options, model)
    else:
        memory.require(options, model)
    model.close()


def test_own_attention_needs_room_for_scores(twin_path: Path) -> None:
    model = Model(twin_path, 0)
    options = context_options(ModelServerSettings(model_path=twin_path, n_threads=3), 256)
    own = replace(options, own_attention=True)
    assert memory.scratch_bytes(replace(own, own_attention=False), model) == 0
    plans = 100 * (2 * 512 + 8 * 8)  # of 8 chunks of 64 rows
    assert memory.scratch_bytes(replace(own, num_cells=100), model) == 3 * 4 * 64 * 100 + plans
    plans = 2**20 * (2 * 512 + 8 * 64)  # of 64 chunks of 8 rows
    assert memory.scratch_bytes(replace(own, num_cells=2**20), model) == 3 * 32 * MIB + plans
    model.close()
