"""What becomes of fields that a body has not under this name: OpenAI's, and those of vLLM,
llama-server, Ollama, LiteLLM, TGI and their clients. They are in fields.json, by table;
docs/FIELDS.md shows them.

A field is ignored only where that can't change what the answer means. OpenAI's are held against the
definitions of its own client by a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Fate(NamedTuple):
    """`values` are ignored: they ask for what happens anyway; None: all of them. What is not is
    refused with `why`, which says what to do instead. `ours`: the field that means the same.
    """

    values: tuple[object, ...] | None = ()
    why: str = ""
    ours: str = ""


Fates = Mapping[str, Fate]


def read(tables: Mapping[str, Sequence[object]]) -> dict[str, Fates]:
    """The fates of each table's fields, those of the tables that it is `like` among them; a later
    entry takes the place of an earlier one. Raises ValueError with the first that is none.
    """
    made: dict[str, Fates] = {}
    for table, entries in tables.items():
        fates: dict[str, Fate] = {}
        for entry in entries:
            match entry:
                case {"like": str(other), **rest} if other in made and not rest:
                    fates |= made[other]
                    continue
                case {"fields": str(names), "ours": str(ours), **rest} if not rest:
                    fate = Fate((), f"another name of {ours}", ours)
                case {"fields": str(names), "why": str(why), "ignored": "any"}:
                    fate = Fate(None, why)
                case {"fields": str(names), "why": str(why), "ignored": list(values)}:
                    fate = Fate(tuple(values), why)
                case {"fields": str(names), "why": str(why), **rest} if not rest:
                    fate = Fate((), why)
                case _:
                    raise ValueError(f"fields.json, {table}: this is no entry: {json.dumps(entry)}")
            fates |= dict.fromkeys(names.split(), fate)
        made[table] = fates
    return made


FATES = read(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
