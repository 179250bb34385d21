"""A start takes the kernels' attention where it can, and says why where it can't."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from model_server.config import ModelServerSettings
from model_server.engine import exactness
from model_server.engine.startup import Served, load
from model_server.errors import StartError
from model_server.llama import kernels
from model_server.metrics import ModelServerMetrics
from tests import random_heads, random_model
from tests.gguf_file import Shape
from tests.random_heads import Kind


def start(path: Path, **fields: Any) -> Served:
    given = {"cpu_kernels": "auto", "n_threads": 1, "model_context_size": 128, **fields}
    return load(ModelServerSettings(model_path=path, **given), ModelServerMetrics())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("attention by")]


def test_own_attention_is_used_and_shown(
    random_q8_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = kernels.num_attentions()
    served = start(random_q8_path)
    served.close()
    name = kernels.instructions()
    assert served.info.cpu_kernels["attention"] == name
    assert served.info.cpu_kernels["output.weight"] == name
    assert "-flash-own" in served.info.model_id
    assert said(caplog) == [f"attention by kernels of our own, {name}"]
    assert kernels.num_attentions() > before + 4  # more than the layers of a first try


@pytest.mark.parametrize(("file_type", "by_own"), [("Q8_0", True), ("F32", False)])
def test_heads_are_shown_where_the_kernels_serve_them(
    random_q8_path: Path, tmp_path: Path, file_type: str, by_own: bool
) -> None:
    heads = random_heads.write(tmp_path / "heads.gguf", Kind(file_type))
    for choice in ("auto", "off"):
        served = start(random_q8_path, medusa_path=heads, cpu_kernels=choice)
        served.close()
        assert served.info.heads
        shown = kernels.instructions() if by_own and choice == "auto" else None
        assert served.info.cpu_kernels.get("heads") == shown


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cpu_kernels": "off"}, "CPU_KERNELS=off"),
        ({"flash_attention": "off"}, "FLASH_ATTENTION=off"),
        ({"kv_cache_type": "f32"}, "KV_CACHE_TYPE is none of f16, bf16, q8_0"),
    ],
)
def test_llama_cpps_own_is_used_where_settings_want_it(
    random_q8_path: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], reason: str
) -> None:
    caplog.set_level(logging.INFO)
    before = kernels.num_attentions()
    served = start(random_q8_path, **fields)
    served.close()
    assert "attention" not in served.info.cpu_kernels
    assert bool(served.info.cpu_kernels) == ("cpu_kernels" not in fields)
    assert "-flash-own" not in served.info.model_id
    assert said(caplog) == [f"attention by llama.cpp: {reason}"]
    assert kernels.num_attentions() == before


def test_a_model_with_other_heads_is_served_without(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Heads of 80 values are no multiple of 32."""
    caplog.set_level(logging.INFO)
    shape = Shape("heads of 80", 512, 320, 2, 4, 2, 256, 512)
    served = start(random_model.write(models_dir / "heads-of-80.gguf", shape=shape))
    served.close()
    assert "attention" not in served.info.cpu_kernels
    assert said(caplog) == ["attention by llama.cpp: not for the attention of llama models like it"]


def test_exact_mode_needs_no_ordered_pool(random_q8_path: Path) -> None:
    for choice, ordered in (("auto", False), ("off", True)):
        served = start(random_q8_path, exact=True, cpu_kernels=choice)
        served.close()
        assert served.info.exact
        assert served.engine.scheduler.kv.ordered is ordered


@pytest.mark.parametrize(
    ("fields", "exact"),
    [({}, True), ({"exact": False}, False), ({"cpu_kernels": "off"}, False)],
)
def test_texts_are_exact_by_default_where_own_kernels_do_all(
    random_q8_path: Path, fields: dict[str, Any], exact: bool
) -> None:
    served = start(random_q8_path, **fields)
    served.close()
    assert served.info.exact is exact
    assert not served.engine.scheduler.kv.ordered


def test_products_of_llama_cpp_promise_nothing(twin_path: Path) -> None:
    """Weights in F32 are packed by nobody."""
    served = start(twin_path)
    served.close()
    assert "attention" in served.info.cpu_kernels
    assert not served.info.exact


def test_what_fails_the_trial_is_not_promised(
    random_q8_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(exactness, "difference", lambda *_, **__: 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    served = start(random_q8_path)
    served.close()
    assert not served.info.exact
    assert "texts may depend on company: it changes logits by 5.0e-01" in caplog.messages
    with pytest.raises(StartError, match="EXACT=true can't be kept"):
        start(random_q8_path, exact=True)
