from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_server.errors import ModelFileError
from model_server.llama import backend
from model_server.llama.model import Model


def test_cores_are_counted_within_what_this_process_may_use() -> None:
    assert 1 <= backend.physical_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/", {"cpu.max": "6400000 100000\n"}, None),
        ("0::/", {}, None),
        ("0::/a.slice/b.service", {"a.slice/b.service/cpu.max": "100000 100000\n"}, 1),
        (
            "0::/a.slice/b.service",
            {"a.slice/cpu.max": "100000 100000", "a.slice/b.service/cpu.max": "max 100000"},
            1,
        ),
        ("0::/a.slice/b.service", {"a.slice/c.service/cpu.max": "100000 100000\n"}, None),
        ("0::/seen/outside", {"cpu.max": "100000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "4:cpu,cpuacct:/a/b",
            {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            1,
        ),
    ],
)
def test_the_limit_of_a_container_or_service_counts(
    tmp_path: Path, line: str, files: dict[str, str], cores: int | None
) -> None:
    """None: as many as there are."""
    texts = {f"groups/{name}": text for name, text in files.items()}
    for name, text in {**texts, "proc/self/cgroup": f"{line}\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    present = backend.physical_cores(tmp_path / "none")
    limited = backend.physical_cores(tmp_path / "proc", tmp_path / "groups")
    assert limited == (present if cores is None else cores)


def test_the_build_names_the_binding_and_the_processor() -> None:
    assert backend.build().startswith("llama-cpp-python 0.3.36 (CPU")


def test_devices_have_names() -> None:
    found = backend.devices()
    assert len(found) > backend.has_gpu()
    assert all(found)


def test_the_first_error_of_an_attempt_explains_it(twin_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(twin_path.read_bytes().replace(b"output_norm", b"output_word"))
    with pytest.raises(ModelFileError):
        Model(path, 0)
    assert "output_norm.weight" in backend.last_error()
    backend.clear_errors()
    assert backend.last_error() == "llama.cpp gives no reason"
