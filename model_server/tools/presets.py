"""Models by name, and where their files are: `python -m model_server.tools.download NAME`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from model_server import places

MODELS = places.models() if places.INSTALLED else Path(os.path.relpath(places.models()))
HEADS_FILE = "medusa-heads.gguf"


@dataclass(frozen=True)
class HubFile:
    """A file on the hub. `repo` is OWNER/NAME; `revision` a branch, tag or commit."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}"

    @property
    def name(self) -> str:
        """The file's name without the folders it has on the hub."""
        return Path(self.file).name


@dataclass(frozen=True)
class Preset:
    """A base model and its Medusa heads. `quant` is the base's type as published."""

    base: HubFile
    quant: str
    heads: HubFile

    def file_name(self, quant: str) -> str:
        """What the base is called in another type."""
        return self.base.name.replace(self.quant.lower(), quant.lower())


PRESETS = {
    "vicuna-7b": Preset(
        base=HubFile("ksajan/vicuna-7b-v1.3-Q8_0-GGUF", "vicuna-7b-v1.3-q8_0.gguf"),
        quant="Q8_0",
        heads=HubFile("FasterDecoding/medusa-vicuna-7b-v1.3", "medusa_lm_head.pt"),
    ),
}
