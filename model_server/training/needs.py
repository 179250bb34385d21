"""What a training takes, and what would stop it: said before hours are spent on it."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from model_server import places
from model_server.errors import CheckpointError, StartError
from model_server.tools.convert_heads import Base, read_base, refuse_type
from model_server.tools.outcome import refuse_own_source, require_space
from model_server.tools.progress import in_words
from model_server.training.sources import Source

_F32_BYTES, _F16_BYTES, _TOKEN_BYTES = 4, 2, 4
_CHECKPOINT_COPIES = 4  # of every weight: the latest, the best, AdamW's two moments
_CHECKPOINTS = 2  # one is there until the next is whole
_MEMORY_COPIES = 6  # those of a checkpoint, gradients, and room


def check(args: argparse.Namespace) -> None:
    """Say what the training will take. Raises StartError where it would fail in the end."""
    if importlib.util.find_spec("torch") is None:  # optional: most people only serve
        raise StartError(f"PyTorch is missing: {places.install_torch()} installs it")
    if args.shared_output and not args.blocks and not args.token:
        raise StartError(
            "--blocks 0 and --no-token with --shared-output leave nothing to learn: choose one"
        )
    if args.target.is_dir():
        raise CheckpointError(str(args.target), "is a folder, must be a file to write")
    refuse_own_source(args.target, args.base, *args.prompts, *args.pieces, *args.texts)
    base = read_base(args.base)
    refuse_type(args.base, base.hidden_size, args.type)
    weights = num_weights(args, base)
    num_rows = num_tokens(args, base) + (base.vocab_size if args.token else 0)
    of_base = num_rows * base.hidden_size
    memory = in_words((weights * _MEMORY_COPIES + of_base) * _F32_BYTES)
    disk = in_words(_checkpoint_bytes(weights))
    print(
        f"{weights / 1e6:,.1f} million weights: training takes about {memory} of memory, and "
        f"{disk} in {args.work} besides the data.",
        flush=True,
    )


def check_space(args: argparse.Namespace, missing: Sequence[Source]) -> None:
    """For the sources that are not yet collected, and the checkpoints. Raises NoSpaceError."""
    base = read_base(args.base)
    lengths = [args.answer_tokens + 1 if s.answered else len(s.tokens) for s in missing]
    data = sum(lengths) * (base.hidden_size * _F16_BYTES + _TOKEN_BYTES)
    checkpoint = args.work / "checkpoint.pt"
    there = checkpoint.stat().st_size if checkpoint.exists() else 0
    require_space(args.work, data + max(_checkpoint_bytes(num_weights(args, base)) - there, 0))


def num_weights(args: argparse.Namespace, base: Base) -> int:
    """Of all heads, as far as they are learnt."""
    block = base.hidden_size * (base.hidden_size + 1)
    output = 0 if args.shared_output else num_tokens(args, base) * base.hidden_size
    token = base.hidden_size**2 if args.token else 0
    return int(args.heads * (args.blocks * block + token + output))


def num_tokens(args: argparse.Namespace, base: Base) -> int:
    """Tokens that the heads know."""
    return min(args.vocab, base.vocab_size) if args.vocab else base.vocab_size


def _checkpoint_bytes(weights: int) -> int:
    return weights * _F32_BYTES * _CHECKPOINT_COPIES * _CHECKPOINTS
