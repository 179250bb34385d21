"""How a tool ends: exit code 0, or one sentence on stderr and 1; 130 where it was interrupted."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model_server.errors import (
    CheckpointError,
    HeadFileError,
    ModelFileError,
    ModelServerError,
    NoSpaceError,
    RequestError,
    StartError,
)
from model_server.tools.progress import in_words

INTERRUPTED = 130  # as shells have it of a program that Ctrl-C ended


def exit_code(work: Callable[[], int | None], target: Path, interrupted: str) -> int:
    """Do a tool's work on `target`; `interrupted` says what a signal to stop leaves behind.

    The work may name an exit code of its own.
    """
    try:
        with stoppable():
            return work() or 0
    except (StartError, RequestError) as error:
        print(_sentence(error), file=sys.stderr)
    except KeyboardInterrupt:
        print(f"Interrupted: {interrupted}.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        name = error.filename2 or error.filename or target
        print(f"{name}: {error.strerror or error}{full}", file=sys.stderr)
    return 1


def _sentence(error: ModelServerError) -> str:
    """Files are arguments here: the settings that name them to the server are left out."""
    if isinstance(error, ModelFileError | HeadFileError):
        return f"{error.path}: {error.problem}"
    return str(error)


def refuse_own_source(target: Path, *sources: Path) -> None:
    """Raises CheckpointError where a target would replace what it is made from."""
    if any(target.exists() and source.exists() and target.samefile(source) for source in sources):
        problem = "is what it would be made from: choose another name to write to"
        raise CheckpointError(str(target), problem)


def refuse_no_folder(target: Path) -> None:
    """Raises CheckpointError where a target's folder is missing: a typing error makes none."""
    if not target.absolute().parent.is_dir():
        raise CheckpointError(str(target), f"there is no folder {target.parent}: make it first")


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises NoSpaceError when the disk of a folder, existing or not, has less room."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise NoSpaceError(str(folder), in_words(num_bytes), in_words(free))


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, unless they are ignored."""
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
