"""Do Medusa heads fit a base, how good are they, and what do they win on this machine?

`python -m model_server.tools.doctor BASE.gguf HEADS.gguf` lets the base answer prompts greedily and
holds the heads' proposals against that. What it learns of their calibration is written into HEADS.
Settings of the server (N_THREADS, N_GPU_LAYERS, CHAT_TEMPLATE, ...) hold here too.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model_server.errors import RequestError, StartError
from model_server.llama.gguf_writer import whole
from model_server.tools.doctor import picture, text
from model_server.tools.doctor.examine import Options, examine
from model_server.tools.doctor.report import Report, to_json
from model_server.tools.doctor.write_back import write_back

_STDOUT = Path("-")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m model_server.tools.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", type=Path, help="GGUF of the base model")
    parser.add_argument("heads", metavar="HEADS", type=Path, help="head file, .gguf")
    parser.add_argument(
        "--prompts", type=Path, help="file with one a line, or folder of texts to continue"
    )
    parser.add_argument(
        "--num-prompts",
        type=_count(2),
        default=defaults.num_prompts,
        help="the more, the surer the calibration (%(default)s)",
    )
    parser.add_argument(
        "--tokens", type=_count(2), default=defaults.num_tokens, help="of each answer (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="draws the prompts")
    parser.add_argument("--any-base", action="store_true", help="try another base's heads too")
    parser.add_argument("--no-write", "--dry-run", action="store_true", help="leave HEADS as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything; -: to stdout")
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    return parser.parse_args(arguments)


def _count(least: int) -> Callable[[str], int]:
    def count(value: str) -> int:
        if not value.isdigit() or int(value) < least:
            raise argparse.ArgumentTypeError(f"must be a number of at least {least}, not {value}")
        return int(value)

    return count


def _say(what: str) -> None:
    """Progress: in place on a terminal, a line each in a log."""
    start, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n" if what else "")
    print(start + what, end=end, file=sys.stderr, flush=True)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = _options(arguments)
    options = Options(args.prompts, args.num_prompts, args.tokens, args.seed, args.any_base)
    try:
        if args.picture:
            picture.refuse_without_matplotlib()
        report = examine(args.base, args.heads, options, _say)
        _say("")
        _publish(report, args)
    except (StartError, RequestError) as error:
        return _fail(str(error))
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        name = error.filename2 or error.filename or args.heads
        return _fail(f"{name}: {error.strerror or error}{full}")
    except KeyboardInterrupt:
        _fail(f"interrupted: {args.heads} is as it was")
        return 130
    return 0


def _fail(sentence: str) -> int:
    _say("")
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
