"""Runs llama.cpp's converter in its venv: `python -I run_converter.py LLAMA_CPP ARGUMENTS...`.

Medusa heads inside a model, whose tensors it has no names for, are left out. Code that comes with
a checkpoint is not run. The last line of the output says what went wrong.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

HEAD_PREFIXES = ("medusa_head.", "medusa_heads.")


def main() -> None:
    """The converter's own `main`, in its own words."""
    del sys.argv[0]
    source = Path(sys.argv[0])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    os.environ["HF_HUB_OFFLINE"] = "1"  # a tokenizer of another name is not looked for elsewhere
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _refuse_foreign_code()
        _leave_heads_out()
        runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")
    except Exception as error:
        traceback.print_exc()
        sys.exit((str(error).strip() or type(error).__name__).splitlines()[0])


def _refuse_foreign_code() -> None:
    """For some tokenizers the converter would run Python that lies in the checkpoint."""
    modules = importlib.import_module("transformers.dynamic_module_utils")

    def refuse(folder: object, file: object, *_: object, **__: object) -> str:
        raise ValueError(f"asks for code of its own, {file}, which could do anything: not run")

    modules.get_cached_module_file = refuse  # type: ignore[attr-defined]


def _leave_heads_out() -> None:
    model = importlib.import_module("conversion.base").ModelBase
    index_tensors = model.index_tensors

    def without_heads(self: object, *args: object, **options: object) -> dict[str, Any]:
        tensors = index_tensors(self, *args, **options)
        return {name: of for name, of in tensors.items() if not name.startswith(HEAD_PREFIXES)}

    model.index_tensors = without_heads


if __name__ == "__main__":
    main()
