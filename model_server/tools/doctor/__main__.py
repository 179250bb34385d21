"""Do Medusa heads fit a base, how good are they, and what do they win on this machine?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_server.tools import options
from model_server.tools.doctor import picture, text
from model_server.tools.doctor.examine import ExamineOptions, examine
from model_server.tools.doctor.report import Report, to_json
from model_server.tools.doctor.write_back import write_back, write_trimmed
from model_server.tools.gguf_writer import whole
from model_server.tools.outcome import exit_code, refuse_own_source

_STDOUT = Path("-")


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
    args = options.doctor(arguments)
    return exit_code(lambda: _run(args), args.heads, f"{args.heads} is as it was")


def _run(args: argparse.Namespace) -> None:
    if args.picture:
        picture.refuse_without_matplotlib()
    if args.trimmed:
        refuse_own_source(args.trimmed, args.base, args.heads)
    asked = ExamineOptions(
        args.prompts,
        args.num_prompts,
        args.tokens,
        args.seed,
        args.any_base,
        keep=args.keep if args.trimmed else 0,
    )
    _publish(examine(args.base, args.heads, asked), args)


if __name__ == "__main__":
    sys.exit(main())
