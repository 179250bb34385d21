"""llama.cpp's source, as the build of the installed llama-cpp-python left it in .cache."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import llama_cpp
import pytest

from model_server.llama import backend
from model_server.llama.vocab import Vocab
from model_server.tools.llama_source import CACHE


def pinned(part: str) -> Path:
    """A file or folder of it; the test is skipped where it was not built here."""
    source = CACHE / f"llama_cpp_python-{version('llama-cpp-python')}" / "vendor" / "llama.cpp"
    if not (source / part).exists():
        pytest.skip(f"llama.cpp's source is not unpacked in {CACHE}: `make install` does it")
    return source / part


def templates() -> list[Path]:
    """The chat templates of public models that lie in it; none where there is no source."""
    source = CACHE / f"llama_cpp_python-{version('llama-cpp-python')}" / "vendor" / "llama.cpp"
    return sorted((source / "models" / "templates").glob("*.jinja"))


def vocabulary(name: str) -> Vocab:
    """A public model's vocabulary."""
    return vocabulary_of(pinned(f"models/ggml-vocab-{name}.gguf"))


def vocabulary_of(path: Path) -> Vocab:
    """A file's vocabulary, without its weights. It stays loaded until the process ends."""
    backend.init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    return Vocab(llama_cpp.llama_model_get_vocab(model))
