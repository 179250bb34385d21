"""How a tool ends: exit code 0, or one sentence on stderr and exit code 1."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model_server.errors import NoSpaceError, StartError
from model_server.tools.progress import in_words


def exit_code(work: Callable[[], None], target: Path, interrupted: str) -> int:
    """Do a tool's work on `target`; `interrupted` says what a signal to stop leaves behind."""
    try:
        with stoppable():
            work()
    except StartError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(f"Interrupted: {interrupted}.", file=sys.stderr)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        name = error.filename2 or error.filename or target
        print(f"{name}: {error.strerror or error}{full}", file=sys.stderr)
    else:
        return 0
    return 1


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
