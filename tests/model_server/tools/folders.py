"""Folders as Hugging Face lays them out, and stand-ins for what a conversion would download."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from model_server.errors import ConverterError
from model_server.tools import convert_base, llama_source
from model_server.tools.llama_source import CACHE
from tests import checkpoints
from tests.checkpoints import Values, Weights
from tests.model_server.tools.converting import Capsys

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256}
BASE = checkpoints.full_model(Weights.random(0))


def hf_folder(folder: Path, arrays: Mapping[str, Values] = BASE) -> Path:
    """A small checkpoint in one file."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.model").touch()
    checkpoints.write_safetensors(folder / "model.safetensors", arrays)
    return folder


def stand_in_cache(cache: Path, files: Mapping[str, str] | None = None) -> Path:
    """A cache whose source archive holds these files of llama.cpp only."""
    requirements = {"requirements/requirements-convert_hf_to_gguf.txt": "transformers==4.57.6\n"}
    cache.mkdir()
    stem = llama_source.requirement().replace("-", "_").replace("==", "-")
    with tarfile.open(cache / f"{stem}.tar.gz", "w:gz") as tar:
        for path, text in (requirements if files is None else files).items():
            info = tarfile.TarInfo(f"{stem}/vendor/llama.cpp/{path}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return cache


def stand_in_venv(venv: Path, code: str) -> Path:
    """A venv whose Python runs this code, whatever it is asked to run."""
    python = venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    python.chmod(0o755)
    return venv


def refused(capsys: Capsys, source: Path, target: Path, *options: object) -> str:
    """The one sentence; nothing was downloaded, nothing is left behind."""
    cache = target.parent.parent / "cache"
    before = sorted(cache.parent.rglob("*"))
    arguments = [str(part) for part in (source, target, *options)]
    assert convert_base.main(arguments, cache) == 1
    assert sorted(cache.parent.rglob("*")) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.strip()


def torch_venv() -> Path:
    """A venv for llama.cpp's converter; the source of the converter is in the cache then."""
    given = os.environ.get("CONVERT_BASE_VENV")
    made = CACHE / "convert-base" / "venv"
    if not given and not (made / ".ready").exists():
        pytest.skip("needs PyTorch: run convert_base once, or name a venv in CONVERT_BASE_VENV")
    try:
        llama_source.archive()
    except ConverterError as error:
        pytest.skip(str(error))
    return Path(given or made)
