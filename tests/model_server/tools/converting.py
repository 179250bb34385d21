"""Checkpoints with heads in every layout, and the command that converts them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from model_server.tools import convert_heads
from tests import checkpoints
from tests.checkpoints import Bf16, Floats, Values, Weights

Capsys = pytest.CaptureFixture[str]


def as_bf16(arrays: Mapping[str, Floats]) -> dict[str, Values]:
    return {name: Bf16(values) for name, values in arrays.items()}


def v01_pt(folder: Path, weights: Weights) -> Path:
    return checkpoints.write_pt(folder / "heads.pt", as_bf16(checkpoints.original(weights)))


def v01_folder(folder: Path, weights: Weights) -> Path:
    """As published: the config names another number of heads than there are."""
    (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 99}))
    checkpoints.write_pt(folder / "medusa_lm_head.pt", as_bf16(checkpoints.original(weights)))
    return folder


def v01_safetensors(folder: Path, weights: Weights) -> Path:
    path = folder / "medusa_lm_head.safetensors"
    return checkpoints.write_safetensors(path, checkpoints.original(weights))


def v10_full_model(folder: Path, weights: Weights) -> Path:
    """In two shards, the heads in both."""
    arrays = list(as_bf16(checkpoints.full_model(weights)).items())
    for number, part in enumerate((dict(arrays[::2]), dict(arrays[1::2])), 1):
        checkpoints.write_pt(folder / f"pytorch_model-0000{number}-of-00002.bin", part)
    return folder


def vllm(folder: Path, weights: Weights) -> Path:
    return checkpoints.write_safetensors(
        folder / "m.safetensors", as_bf16(checkpoints.vllm(weights))
    )


def tensorrt_llm(folder: Path, weights: Weights) -> Path:
    arrays = as_bf16(checkpoints.tensorrt_llm(weights))
    checkpoints.write_safetensors(folder / "rank0.safetensors", arrays)
    return folder


LAYOUTS = {
    f.__name__: f for f in (v01_pt, v01_folder, v01_safetensors, v10_full_model, vllm, tensorrt_llm)
}


def run(source: Path, target: Path, *options: str | Path) -> int:
    return convert_heads.main([str(part) for part in (source, target, *options)])


def refused(capsys: Capsys, source: Path, target: Path, *options: object) -> str:
    """The one sentence; nothing is left behind."""
    before = sorted(target.parent.iterdir()) if target.parent.exists() else []
    assert run(source, target, *(str(option) for option in options)) == 1
    assert (sorted(target.parent.iterdir()) if target.parent.exists() else []) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.strip()
