"""The control groups of this process, in which a container or a service has its limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def around(controller: str, proc: Path = PROC, groups: Path = GROUPS) -> Iterator[Path]:
    """Folders of the group that this process is in, then of those around it: of a controller of
    version 1, or of version 2, which is "". A container may see its own group as the root.
    """
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                folder = Path(path.lstrip("/"))
                for each in (folder, *folder.parents):
                    yield groups / controller / each
