"""What a person may type for each tool that needs llama.cpp, which is not needed to read it.

Where llama.cpp is still to be built, who asks for help or mistypes isn't kept waiting for that.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from model_server import places
from model_server.medusa.limits import MAX_BLOCKS, MAX_HEADS
from model_server.tools import weight_types
from model_server.tools.arguments import at_least, between, lines
from model_server.tools.presets import MODELS, PRESETS

_HF_DIR = "config.json, tokenizer.model or tokenizer.json, and the weights"
_MAX_AT_ONCE = 128  # N_PARALLEL's limit
# Of the doctor, whoever calls it.
NUM_PROMPTS, NUM_TOKENS = 40, 48

_TRAINING: Sequence[tuple[str, Callable[[str], float], float, str]] = (
    ("--ask", at_least(0), 0, "prompts that BASE asks itself: no data are needed"),
    ("--num", at_least(0), 0, "prompts and pieces to take, by chance; 0: all"),
    ("--num-texts", at_least(0), 0, "windows of texts to take, by chance; 0: all"),
    ("--piece-tokens", at_least(2), 256, "of each piece to continue"),
    ("--text-tokens", at_least(3), 512, "of each window of a text"),
    ("--answer-tokens", at_least(2), 256, "that BASE adds at most"),
    ("--temperature", between(0, 100), 0.0, "of the answers"),
    ("--at-once", at_least(1, _MAX_AT_ONCE), 16, "answers made together"),
    ("--held-out", between(0, 1), 0.05, "share of the data that heads are judged by"),
    ("--heads", at_least(1, MAX_HEADS), 5, "how many"),
    ("--blocks", at_least(0, MAX_BLOCKS), 1, "residual blocks of each head"),
    ("--vocab", at_least(0), 0, "most frequent tokens, all that heads can say; 0: every one"),
    ("--epochs", at_least(1), 8, "passes over the data at most"),
    ("--patience", at_least(1), 2, "passes without a gain that end it"),
    ("--batch", at_least(1), 512, "positions a step"),
    ("--learning-rate", between(0, 1), 1e-3, "at its peak"),
    ("--dropout", between(0, 0.9), 0.2, "share of the values that a step leaves out"),
    ("--seed", at_least(0, 2**32 - 1), 0, "of all that goes by chance"),
)

Words = Sequence[str] | None


def fetch(words: Words = None) -> argparse.Namespace:
    """Models from a Hugging Face hub, ready to serve.

    WHAT is a preset (vicuna-7b: base model and Medusa heads, converted) or
    OWNER/REPO/FILE. What is there is kept, what was interrupted continues.
    Variables: HF_TOKEN, HF_ENDPOINT.
    """
    parser = _parser("model_server.tools.download", fetch)
    names = ", ".join(PRESETS)
    parser.add_argument("what", metavar="WHAT", help=f"{names}, or OWNER/REPO/FILE of a hub")
    # Nothing that is published has F16.
    types = [type_ for type_ in weight_types.QUANTIZED if type_ != "F16"]
    parser.add_argument("--quant", type=str.upper, choices=types, help="type of a preset's base")
    parser.add_argument("--revision", default="main", help="of OWNER/REPO: branch, tag or commit")
    parser.add_argument("--out", type=Path, help=f"folder; else one in {MODELS}")
    return parser.parse_args(words)


def convert_base(words: Words = None) -> argparse.Namespace:
    """A Hugging Face checkpoint to a base GGUF.

    llama.cpp's own converter does it. A Medusa-2 model becomes a base and a file
    of heads. The files appear when they are whole.
    """
    parser = _parser("model_server.tools.convert_base", convert_base)
    parser.add_argument("source", metavar="HF_DIR", type=Path, help=f"folder with {_HF_DIR}")
    parser.add_argument("target", metavar="OUT", type=Path, help="base model to write, .gguf")
    _add_type(parser, weight_types.CONVERTED, "F16")
    parser.add_argument("--heads", type=Path, help="for a Medusa-2 model's; else medusa-heads.gguf")
    parser.add_argument("--venv", type=Path, help="with PyTorch and transformers; else one is made")
    return _parsed(parser, words)


def convert_heads(words: Words = None) -> argparse.Namespace:
    """Medusa heads of any published layout to a GGUF.

    IN is a file or a folder: Medusa's own `.pt`, safetensors, full models, or
    vLLM's. Tensors go through a few rows at a time. OUT appears when it is whole.
    """
    parser = _parser("model_server.tools.convert_heads", convert_heads)
    parser.add_argument("source", metavar="IN", type=Path, help="file or folder with the heads")
    parser.add_argument("target", metavar="OUT", type=Path, help="head file to write, .gguf")
    _add_type(parser, weight_types.OF_HEADS, "Q8_0")
    parser.add_argument("--base", type=Path, help="GGUF of their base: checked, and named in OUT")
    parser.add_argument("--trim", type=Path, help="token frequencies, lines of `id count`")
    parser.add_argument(
        "--keep", type=at_least(1), default=8_192, help="tokens that --trim leaves (%(default)s)"
    )
    return _parsed(parser, words)


def quantize(words: Words = None) -> argparse.Namespace:
    """A base GGUF in another type.

    Done by llama.cpp's own quantizer. OUT appears when it is whole.
    """
    parser = _parser("model_server.tools.quantize", quantize)
    parser.add_argument("source", metavar="IN", type=Path, help="base GGUF, best in F16")
    parser.add_argument("target", metavar="OUT", type=Path, help="GGUF to write")
    _add_type(parser, weight_types.QUANTIZED, "Q4_K_M")
    return _parsed(parser, words)


def heads(words: Words = None) -> argparse.Namespace:
    """Medusa heads for any GGUF, trained against the very file that is served.

    BASE answers prompts, its own or given ones, or reads texts; its hidden states
    and the tokens that followed are kept in a folder. PyTorch learns the heads from
    them, and OUT is written. After an interruption the same command goes on.
    """
    parser = _parser("model_server.training", heads)
    add = parser.add_argument
    add("base", metavar="BASE", type=Path, help="GGUF that will be served with the heads")
    add("target", metavar="OUT", type=Path, help="head file to write, .gguf")
    for name, what in (
        ("--prompts", "files of prompts, one a line; BASE answers them"),
        ("--pieces", "texts or folders; BASE continues pieces of them"),
        ("--texts", "texts or folders, learnt as they stand, besides or alone"),
    ):
        add(name, nargs="+", type=Path, default=[], metavar="PATH", help=what)
    for name, type_, default, what in _TRAINING:
        add(name, type=type_, default=default, help=f"{what} ({default})")
    add("--exact", action="store_true", help="the same answers on every run (Q8_0, CPU)")
    add("--shared-output", action="store_true", help="use BASE's output matrix: a smaller file")
    add(
        "--token",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tell heads the token drawn before theirs; without, they have Medusa's own form",
    )
    _add_type(parser, weight_types.OF_HEADS, "Q8_0")
    add("--work", type=Path, help="folder for data and checkpoints (OUT.training)")
    args = _parsed(parser, words)
    args.work = args.work or Path(f"{args.target}.training")
    return args


def doctor(words: Words = None) -> argparse.Namespace:
    """Do Medusa heads fit a base, how good are they, and what do they win here?

    The base answers prompts greedily, and the heads' proposals are held against
    that. What is learnt of their calibration is written into HEADS. Settings of the
    server (N_THREADS, N_GPU_LAYERS, CHAT_TEMPLATE, ...) hold here too.
    """
    parser = _parser("model_server.tools.doctor", doctor)
    add = parser.add_argument
    add("base", metavar="BASE", type=Path, help="GGUF of the base model")
    add("heads", metavar="HEADS", type=Path, help="head file, .gguf")
    add(
        "--prompts",
        type=Path,
        help="file with one a line, text or JSON, or folder of texts to continue",
    )
    for name, least, default, what in (
        ("--num-prompts", 2, NUM_PROMPTS, "the more, the surer the calibration"),
        ("--tokens", 2, NUM_TOKENS, "of each answer"),
        ("--seed", 0, 0, "draws the prompts"),
    ):
        add(name, type=at_least(least), default=default, help=f"{what} ({default})")
    add("--any-base", action="store_true", help="try another base's heads too")
    add("--no-write", "--dry-run", action="store_true", help="leave HEADS as it is")
    add("--trimmed", type=Path, metavar="OUT.gguf", help="write heads that know fewer tokens")
    add(
        "--keep",
        type=at_least(1),
        default=8_192,
        help="tokens of --trimmed: the most frequent in prompts and answers (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="everything; -: to stdout")
    add("--picture", type=Path, metavar="OUT.png")
    return parser.parse_args(words)


def verify(words: Words = None) -> argparse.Namespace:
    """Does Medusa change the text? Asked with the server's settings.

    The reference is plain decoding of one request at a time. Plain decoding in a
    batch of 4 differs from it where kernels round otherwise in company; Medusa
    alone must not differ more often. The first divergence of each answer is
    reported with its logit margin: by how much the reference preferred its own
    token there. The exit code is 1 if Medusa alone differs more often than plain
    decoding in a batch, or, with EXACT=true, if anything differs at all.
    """
    parser = _parser("model_server.tools.verify", verify)
    parser.add_argument("--prompts", type=lines, help="a file with one prompt a line")
    for name, type_, default, what in (
        ("--num-prompts", at_least(1), 50, "how many"),
        ("--prompt-tokens", at_least(1), 100, "of the default prompts"),
        ("--tokens", at_least(1), 100, "of each answer"),
        ("--temperature", between(0, 100), 0.0, "of the answers"),
        ("--seed", at_least(0), 0, "of their noise"),
    ):
        parser.add_argument(name, type=type_, default=default, help=f"{what} ({default})")
    return parser.parse_args(words)


# By what follows `medusa-serve`.
OF = {
    "fetch": fetch,
    "convert base": convert_base,
    "convert heads": convert_heads,
    "quantize": quantize,
    "heads": heads,
    "doctor": doctor,
    "verify": verify,
}


def needs_llama(name: str, args: argparse.Namespace) -> bool:
    """One file of a hub is only fetched."""
    return name != "fetch" or args.what in PRESETS


def _parser(module: str, what: Callable[..., object]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=places.program(module),
        description=inspect.getdoc(what),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_type(parser: argparse.ArgumentParser, types: Sequence[str], default: str) -> None:
    """For `_parsed`: what OUT's name ends in counts before the default."""
    what = f"of the weights; else the one that OUT's name ends in, else {default}"
    parser.add_argument("--type", type=str.upper, choices=types, help=what)
    parser.set_defaults(types=types, default_type=default)


def _parsed(parser: argparse.ArgumentParser, words: Words) -> argparse.Namespace:
    """With a type that OUT's name doesn't contradict: QUANT= chooses files by their names."""
    args = parser.parse_args(words)
    named = weight_types.named(args.target)
    args.type = args.type or named or args.default_type
    if named and args.type != named:
        parser.error(f"{args.target.name} would hold {args.type}: choose a name without {named}")
    if args.type not in args.types:
        known = ", ".join(args.types)
        parser.error(f"{args.target.name} is named after {named}, which is none of {known}")
    return args
