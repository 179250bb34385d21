"""The tables of docs/FIELDS.md: `python -m tests.structure.fields` prints them."""

from __future__ import annotations

import json

from api.requests.body import FATES, Fate

GROUPS = {"OpenAI": FATES["openai"], "Others": FATES["others"]}


def in_words(fate: Fate) -> str:
    if fate.ours:
        return f"honoured, as `{fate.ours}`"
    if fate.ignored == "any":
        return f"ignored: {fate.why}"
    if not fate.ignored:
        return f"refused: {fate.why}"
    values = " or ".join(f"`{json.dumps(value)}`" for value in fate.ignored)
    return f"ignored where it is {values}, else refused: {fate.why}"


def tables() -> str:
    parts = []
    for title, group in GROUPS.items():
        rows = [f"| `{name}` | {in_words(fate)} |" for name, fate in sorted(group.items())]
        parts.append("\n".join([f"## {title}", "", "| field | what becomes of it |", "|---|---|"]))
        parts[-1] += "\n" + "\n".join(rows) + "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    print(tables(), end="")
