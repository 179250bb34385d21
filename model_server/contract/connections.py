"""How many connections a process may have: each is an open file."""

from __future__ import annotations

import resource

MAX_FILES = 65_536


def allow_connections() -> None:
    """Of open files a shell allows 1,024 where the system allows far more."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
