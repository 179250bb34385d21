from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_server.tools import full_model

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.norm.weight", "medusa_head.0.0.linear.weight"], True),
        (["medusa_heads.0.1.weight"], True),
        (["model.norm.weight", "lm_head.weight"], False),
        (["model.medusa_head.weight"], False),
        ([], False),
    ],
)
def test_heads_are_told_by_their_names(names: list[str], expected: bool) -> None:
    assert full_model.has_heads(names) is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, LLAMA),
        (QWEN, QWEN),
        ({"model_type": "llama", "architectures": ["MedusaModelLlama"]}, LLAMA),
        ({"model_type": "mistral", "architectures": ["MedusaModelMistral"]}, MISTRAL),
        ({"model_type": "medusa", "architectures": ["MedusaModelMistral"]}, MISTRAL),
        ({"model_type": "medusa"}, LLAMA),
        ({}, LLAMA),
        ({**LLAMA, "medusa_num_heads": 5, "medusa_num_layers": 1}, LLAMA),
    ],
)
def test_the_config_becomes_that_of_the_base(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert full_model.base_config({**config, "hidden_size": 8}) == {**expected, "hidden_size": 8}


def test_the_folder_is_shown_with_another_config_only(tmp_path: Path) -> None:
    folder = tmp_path / "vicuna"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_text("weights")
    with full_model.as_base(folder, {"medusa_num_heads": 5}) as shown:
        assert shown.name == "vicuna"
        assert json.loads((shown / "config.json").read_text()) == LLAMA
        assert (shown / "weights.bin").read_text() == "weights"
    assert not shown.parent.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.bin"]
    assert (folder / "config.json").read_text() == "{}"
