"""A preset's base and heads in a folder: fetched, and made into what is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_server.tools import convert_heads, hub
from model_server.tools.outcome import require_space
from model_server.tools.presets import HEADS_FILE, Preset
from model_server.tools.progress import in_words
from model_server.tools.quantize import quantize
from model_server.tools.weight_types import BITS


@dataclass(frozen=True)
class PresetFiles:
    """A preset's files in a folder: base and heads as published, and as served."""

    preset: Preset
    quant: str
    folder: Path

    @property
    def published_base(self) -> Path:
        """The base as fetched, from which other types are made."""
        return self.folder / self.preset.base.name

    @property
    def base(self) -> Path:
        """The base in the type asked for."""
        return self.folder / self.preset.file_name(self.quant)

    @property
    def published_heads(self) -> Path:
        """The heads as fetched."""
        return self.folder / self.preset.heads.name

    @property
    def heads(self) -> Path:
        """The heads as a head file."""
        return self.folder / HEADS_FILE

    def look_up(self) -> list[hub.Download]:
        """What must be fetched. Raises DownloadError; NoSpaceError when not all of it fits."""
        wanted = []
        if not self.base.exists():
            wanted.append((self.preset.base, self.published_base))
        if not self.heads.exists():
            wanted.append((self.preset.heads, self.published_heads))
        found = [hub.look_up(*each) for each in wanted if not hub.is_there(*each)]
        sizes = {download.target: download.size for download in found}
        missing_bytes = sum(download.missing_bytes for download in found)
        require_space(self.folder, missing_bytes + self._made_bytes(sizes))
        return found

    def _made_bytes(self, sizes: dict[Path, int]) -> int:
        """About what quantizing and converting will write."""
        made = 0.0
        if not self.base.exists() and self.base != self.published_base:
            size = sizes.get(self.published_base) or self.published_base.stat().st_size
            made += size * BITS[self.quant] / BITS[self.preset.quant]
        if not self.heads.exists():
            size = sizes.get(self.published_heads) or self.published_heads.stat().st_size
            made += size * BITS["Q8_0"] / BITS["F16"]
        return int(made)


def prepare(plan: PresetFiles) -> None:
    """Make a preset's base and heads lie in its folder, fetching and making what is missing.

    Raises DownloadError, CheckpointError, NoSpaceError, or OSError of the disk.
    """
    if plan.base.exists() and plan.heads.exists():
        convert_heads.read_base(plan.base)
        print(f"Nothing to do: {plan.base} and {plan.heads} are there.")
        return
    downloads = plan.look_up()
    if downloads:
        missing = in_words(sum(download.missing_bytes for download in downloads))
        print(f"Fetching {missing} to {plan.folder}.", flush=True)
    for download in downloads:
        download.run()
    if not plan.base.exists():
        quantize(plan.published_base, plan.base, plan.quant)
    if not plan.heads.exists():
        print(f"Converting {plan.published_heads}.", flush=True)
        options = convert_heads.ConvertOptions(base=convert_heads.read_base(plan.base))
        convert_heads.convert(plan.published_heads, plan.heads, options)
        size = in_words(plan.heads.stat().st_size)
        print(f"  {plan.heads}: {size}; {plan.published_heads.name} is not needed any more")
