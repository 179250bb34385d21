"""What a head file is, and whether it was made for this base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_server.errors import ModelFileError
from model_server.llama import ggml, gguf
from model_server.llama.gguf import GgufHeader, StoredTensor
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.medusa.head_file import UNKNOWN_BASE, HeadFile


@dataclass(frozen=True)
class Fit:
    """Heads beside their base. `made_for`: whose fingerprint the head file names.

    `matrix_type`, `output_type`: ggml's names; blocks of none are "-". `num_tokens`: those that the
    heads know, of `vocab_size`. `base_fingerprint`: the base's own, where it has one.
    `sees_token`: the heads are told which token was drawn before theirs.
    """

    base_name: str
    base_file: str
    base_fingerprint: str | None
    heads_file: str
    heads_name: str
    heads_bytes: int
    made_for: Literal["this base", "another base", "unknown"]
    num_heads: int
    num_blocks: int
    hidden_size: int
    vocab_size: int
    num_tokens: int
    matrix_type: str
    output_type: str
    shared_output: bool
    sees_token: bool
    is_calibrated: bool


def look(path: Path, base: Model) -> tuple[Fit, HeadFile]:
    """What the head file holds. Raises HeadFileError where it doesn't fit."""
    file = head_file.read(path, base, any_base=True)
    header = GgufHeader(path)
    named = header.string("medusa.base_fingerprint")
    name = header.string("general.name") or gguf.stem(path)
    header.close()
    fingerprint = _fingerprint(base)
    fit = Fit(
        base_name=base.name,
        base_file=str(base.path),
        base_fingerprint=fingerprint,
        heads_file=str(path),
        heads_name=name,
        heads_bytes=path.stat().st_size,
        made_for="unknown"
        if named == UNKNOWN_BASE
        else "this base"
        if named == fingerprint
        else "another base",
        num_heads=file.num_heads,
        num_blocks=len(file.blocks),
        hidden_size=file.hidden_size,
        vocab_size=file.vocab_size,
        num_tokens=file.num_tokens,
        matrix_type=_types([block.weights[0] for block in file.blocks]),
        output_type=_types(file.outputs[:1]),
        shared_output=file.shared_output,
        sees_token=bool(file.token_weights),
        is_calibrated=file.calibration is not None,
    )
    return fit, file


def _fingerprint(base: Model) -> str | None:
    try:
        return base.base_fingerprint
    except ModelFileError:  # it lacks what one is made of, and can still be served
        return None


def _types(tensors: Sequence[StoredTensor]) -> str:
    return " and ".join(sorted({ggml.type_name(tensor.type) for tensor in tensors})) or "-"
