"""Do Medusa heads fit a base, how good are they, and what do they win on this machine?

The base answers prompts greedily, and the heads' proposals are held against that. What is learnt of
their calibration is written into HEADS. Settings of the server (N_THREADS, N_GPU_LAYERS,
CHAT_TEMPLATE, ...) hold here too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_server import places
from model_server.tools.arguments import at_least
from model_server.tools.doctor import picture, text
from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.report import Report, to_json
from model_server.tools.doctor.write_back import write_back, write_trimmed
from model_server.tools.gguf_writer import whole
from model_server.tools.outcome import exit_code, refuse_own_source

_STDOUT = Path("-")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = ExamineOptions()
    parser = argparse.ArgumentParser(
        prog=places.program("model_server.tools.doctor"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", type=Path, help="GGUF of the base model")
    parser.add_argument("heads", metavar="HEADS", type=Path, help="head file, .gguf")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="file with one a line, text or JSON, or folder of texts to continue",
    )
    parser.add_argument(
        "--num-prompts",
        type=at_least(2),
        default=defaults.num_prompts,
        help="the more, the surer the calibration (%(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=at_least(2),
        default=defaults.num_tokens,
        help="of each answer (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=defaults.seed, help="draws the prompts (%(default)s)"
    )
    parser.add_argument("--any-base", action="store_true", help="try another base's heads too")
    parser.add_argument("--no-write", "--dry-run", action="store_true", help="leave HEADS as it is")
    parser.add_argument(
        "--trimmed", type=Path, metavar="OUT.gguf", help="write heads that know fewer tokens"
    )
    parser.add_argument(
        "--keep",
        type=at_least(1),
        default=8_192,
        help="tokens of --trimmed: the most frequent in prompts and answers (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything; -: to stdout")
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    return parser.parse_args(arguments)


def _publish(report: Report, args: argparse.Namespace) -> None:
    """The report in all the forms that were asked for; JSON takes the place of text on stdout."""
    if args.json == _STDOUT:
        print(to_json(report), end="")
    else:
        print(text.render(report))
    if args.json and args.json != _STDOUT:
        with whole(args.json) as part:
            part.write_text(to_json(report))
    if args.picture:
        picture.draw(report, args.picture)
    if not args.no_write:
        print(write_back(args.heads, report), file=sys.stderr)
    if args.trimmed:
        print(write_trimmed(args.heads, args.trimmed, report), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = _options(arguments)
    return exit_code(lambda: _run(args), args.heads, f"{args.heads} is as it was")


def _run(args: argparse.Namespace) -> None:
    if args.picture:
        picture.refuse_without_matplotlib()
    if args.trimmed:
        refuse_own_source(args.trimmed, args.base, args.heads)
    options = ExamineOptions(
        args.prompts,
        args.num_prompts,
        args.tokens,
        args.seed,
        args.any_base,
        keep=args.keep if args.trimmed else 0,
    )
    _publish(examine(args.base, args.heads, options), args)


if __name__ == "__main__":
    sys.exit(main())
