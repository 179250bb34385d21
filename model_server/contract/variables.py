"""Variables of the environment that are almost settings: a typing error is not silently ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

# How alike names must be, 0 to 1, if not of the same letters, as PROT and PORT: N_PARALEL is .95
# N_PARALLEL; the settings themselves, of both tiers, are never more than .89 of each other.
ALIKE = 0.9


def almost(settings: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that is no setting, but almost one."""
    names = [name.upper() for name in settings]
    return [
        f"{given} is no setting, and is ignored: is {near[0]} meant?"
        for given in sorted(environment.keys() - names)
        if (near := [each for each in names if sorted(each) == sorted(given)])
        or (near := get_close_matches(given, names, 1, ALIKE))
    ]
