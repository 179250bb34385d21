from __future__ import annotations

from pathlib import Path

from model_server.config import ModelServerSettings
from model_server.engine.startup import load
from model_server.metrics import ModelServerMetrics
from tests import long_rope_model


def test_factors_for_long_contexts_are_named(tmp_path: Path) -> None:
    """llama.cpp chooses them by the size of the pool, and they change every answer."""
    path = long_rope_model.write(tmp_path / "a.gguf", short_context=512)
    told = {}
    for num_cells in (512, 1_024):
        settings = ModelServerSettings(
            model_path=path, n_threads=1, model_context_size=256, kv_cache_tokens=num_cells
        )
        loaded = load(settings, ModelServerMetrics())
        told[num_cells] = (loaded.info.model_id, loaded.info.warnings)
        loaded.close()
    assert told[512][0] != told[1_024][0]
    assert told[512][1] == []
    [warning] = told[1_024][1]
    assert "KV_CACHE_TOKENS=512" in warning
