"""Medusa-2 models: heads inside a base model's checkpoint, which is shown as the base alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_server.tools.run_converter import HEAD_PREFIXES

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def has_heads(names: Iterable[str]) -> bool:
    """Whether some of a checkpoint's tensors are Medusa heads inside a full model."""
    return any(name.startswith(HEAD_PREFIXES) for name in names)


def base_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the base: without Medusa's keys, and with an architecture that exists.

    Medusa's own code knows Llama and Mistral. Other kinds of models keep what they say.
    """
    kept = {name: value for name, value in config.items() if not name.startswith("medusa_")}
    kind = str(config.get("model_type", "medusa"))
    if "medusa" in kind:
        kind = "mistral" if "mistral" in str(config.get("architectures")).lower() else "llama"
    if kind in _ARCHITECTURES:
        kept |= {"model_type": kind, "architectures": [_ARCHITECTURES[kind]]}
    return kept


@contextmanager
def as_base(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """A folder of the same name that links to all files of this one, but has the base's config."""
    with tempfile.TemporaryDirectory() as parent:
        shown = Path(parent) / folder.resolve().name
        shown.mkdir()
        for path in folder.resolve().iterdir():
            if path.name != "config.json":
                (shown / path.name).symlink_to(path)
        (shown / "config.json").write_text(json.dumps(base_config(config)))
        yield shown
