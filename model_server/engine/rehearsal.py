"""Opens files as a start will, but for their weights, then tries what their products need.

`python -m model_server.engine.rehearsal MODEL [HEADS]` says on stdout what it does. llama.cpp ends
the process over some files that are damaged or made badly, so it is one of its own. It refuses
nothing: what can be said in a sentence is said by who loads the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from model_server.engine.prompt import PromptEncoder, choose_template
from model_server.llama import matmuls
from model_server.llama.context import MAX_SEQS, Context, ContextOptions
from model_server.llama.model import Model
from model_server.llama.trial import OPENING
from model_server.medusa import head_file

_NUM_CELLS = 512


def open_files(base: Path, heads: Path | None) -> None:
    """Read all of them that a start reads. Raises StartError."""
    head_file.require_roles(base, heads)
    _say(base, "its header and what it lays out")
    model = Model(base, 0, weights=False)
    _say(base, "its attention")
    Context(model, ContextOptions(_NUM_CELLS, MAX_SEQS, 1)).close()
    _say(base, "its vocabulary")
    for part in ("pieces", "special_texts", "grammar_tokenizer"):
        getattr(model.vocab, part)
    _say(base, "its chat template")
    template = choose_template(model.chat_template, "", model.name)
    PromptEncoder(model.vocab, template, _NUM_CELLS)
    if heads:
        _say(heads, "its header")
        head_file.read(heads, model, any_base=True)
    model.close()


def main(base: str, *heads: str) -> int:
    """Open them, then try all that they hold."""
    open_files(Path(base), Path(heads[0]) if heads else None)
    return matmuls.main(base, *heads)


def _say(path: Path, what: str) -> None:
    print(f"{OPENING}{path}: {what}", flush=True)


if __name__ == "__main__":
    matmuls.may_die()
    sys.exit(main(*sys.argv[1:]))
