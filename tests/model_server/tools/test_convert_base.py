"""Whole conversions, against transformers: they need a venv with PyTorch, and else are skipped."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.app import AppState, create_app
from model_server.config import ModelServerSettings
from model_server.engine import startup
from model_server.llama.gguf import GgufHeader, base_fingerprint
from model_server.metrics import ModelServerMetrics
from model_server.tools import convert_base
from tests import heads_reference
from tests.model_server.tools.converting import Capsys
from tests.model_server.tools.downloading import sentences
from tests.reference import Reference
from tests.structure.modules import ROOT

pytestmark = pytest.mark.slow

TEXT = ROOT / "LICENSE"
NUM_HEADS = 3


@dataclass(frozen=True)
class Written:
    """A checkpoint, and what transformers computes with it."""

    folder: Path
    computed: dict[str, NDArray[Any]]


Write = Callable[[str, int], Written]


@pytest.fixture(scope="session")
def write(torch_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    @cache
    def written(kind: str, num_heads: int) -> Written:
        folder = tmp_path_factory.mktemp("checkpoints") / f"tiny-{kind}-{num_heads}"
        script = [torch_venv / "bin" / "python", "-I", ROOT / "tests" / "hf_checkpoint.py"]
        command = [*script, folder, TEXT, kind, "--heads", str(num_heads)]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return Written(folder, dict(np.load(folder.with_suffix(".npz"))))

    return written


@pytest.fixture
def copied(write: Write, folder: Path) -> Path:
    """A checkpoint of one's own, to be spoiled."""
    shutil.copytree(write("safetensors", 0).folder, folder / "tiny")
    return folder / "tiny"


@pytest.fixture
def run(torch_venv: Path) -> Callable[..., int]:
    return lambda *given: convert_base.main([*map(str, given), "--venv", str(torch_venv)])


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_base_computes_what_transformers_computes(
    kind: str, write: Write, run: Callable[..., int], target: Path, capsys: Capsys
) -> None:
    written = write(kind, 0)
    assert len(list(written.folder.glob(f"*-of-*.{kind}"))) > 2
    assert run(written.folder, target, "--type", "F32") == 0
    assert list(target.parent.iterdir()) == [target]
    with Reference(target) as model:
        found = model.logits(written.computed["tokens"].tolist())
        assert (
            model.tokenize(str(written.computed["text"])) == written.computed["text_ids"].tolist()
        )
    assert written.computed["logits"].std() > 0.5
    assert np.abs(found - written.computed["logits"]).max() < 1e-4
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(f"{target}: F32, 5.")
    assert not sentences(err)


def published(folder: Path) -> None:
    """As v1.0's are: a base's config, with Medusa's keys."""
    change_config(folder, medusa_num_heads=99, medusa_num_layers=1)


def foreign(folder: Path) -> None:
    change_config(folder, model_type="medusa", architectures=["MedusaModelLlama"])
    (folder / "training_args.bin").write_text("no weights")


@pytest.mark.parametrize(("kind", "config"), [("bin", foreign), ("safetensors", published)])
def test_a_medusa_2_model_becomes_a_base_and_heads(
    kind: str,
    config: Callable[[Path], None],
    write: Write,
    run: Callable[..., int],
    target: Path,
    capsys: Capsys,
) -> None:
    written = write(kind, NUM_HEADS)
    config(written.folder)
    assert run(written.folder, target, "--type", "F32") == 0
    heads = target.with_name("medusa-heads.gguf")
    assert sorted(target.parent.iterdir()) == sorted([target, heads])
    with Reference(target) as model:
        found = model.logits(written.computed["tokens"].tolist())
    assert np.abs(found - written.computed["logits"]).max() < 1e-4
    log_probs, _ = heads_reference.log_probs(heads, written.computed["hidden"], NUM_HEADS)
    assert np.abs(log_probs - written.computed["head_log_probs"]).max() < 0.05  # Q8_0
    header, base_header = GgufHeader(heads), GgufHeader(target)
    assert header.string("medusa.base_fingerprint") == base_fingerprint(base_header)
    assert base_header.string("general.architecture") == "llama"
    header.close()
    base_header.close()
    assert f"{heads}: 3 heads of 1 blocks" in capsys.readouterr().out


@pytest.mark.anyio
async def test_base_and_heads_can_be_served(
    write: Write, run: Callable[..., int], target: Path
) -> None:
    written = write("safetensors", NUM_HEADS)
    heads = target.with_name("h.gguf")
    assert run(written.folder, target, "--type", "F32", "--heads", heads) == 0
    settings = ModelServerSettings(
        model_path=target, medusa_path=heads, medusa_mode="tree", kv_cache_type="f32",
        flash_attention="off", n_threads=1, n_parallel=2, model_context_size=128,
    )  # fmt: skip
    served = startup.load(settings, ModelServerMetrics())
    expected = written.computed["greedy"].tolist()
    request = {"id": "r", "prompt_tokens": written.computed["tokens"].tolist(), "ignore_eos": True,
               "max_tokens": len(expected), "sampling": {"temperature": 0}}  # fmt: skip
    try:
        transport = httpx.ASGITransport(create_app(AppState(served=served, loaded=1.0)))
        async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
            answer = await client.post("/batch", json={"id": "b", "requests": [request]})
    finally:
        served.close()
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [token for event in events for token in event.get("ids", ())] == expected
    assert events[-1]["speculation"]["num_draft_tokens"] > 0


@pytest.mark.parametrize(
    ("file_type", "tensor_type", "tolerance"),
    [("F16", 1, 0.02), ("BF16", 30, 0.2), ("Q8_0", 8, 0.5)],
)
def test_other_types(
    file_type: str,
    tensor_type: int,
    tolerance: float,
    write: Write,
    run: Callable[..., int],
    target: Path,
) -> None:
    written = write("safetensors", 0)
    name = target.with_name("a {ftype} {b}.gguf")
    assert run(written.folder, name, "--type", file_type) == 0
    header = GgufHeader(name)
    assert header.tensors["blk.0.attn_q.weight"].type == tensor_type
    header.close()
    with Reference(name) as model:
        found = model.logits(written.computed["tokens"].tolist())
    assert np.abs(found - written.computed["logits"]).max() < tolerance


def with_code(folder: Path) -> None:
    """A kind of model whose tokenizer the converter trusts to bring its own code."""
    change_config(folder, architectures=["DreamModel"], model_type="Dream")
    trace = f"from pathlib import Path\nPath({str(folder / 'was-run')!r}).touch()\n"
    (folder / "own.py").write_text(f"{trace}class Tokenizer: ...\n")
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenizer.model").rename(folder / "vocab.txt")


def without_a_tensor(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    text = index.read_text().replace("model.norm.weight", "model.other.weight")
    index.write_text(text)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda folder: change_config(folder, architectures=["OurOwnForCausalLM"]),
            "Model OurOwnForCausalLM is not supported",
        ),
        (without_a_tensor, "Mismatch between weight map and model parts for tensor names:"),
        (with_code, "asks for code of its own, own.py, which could do anything: not run"),
    ],
)
def test_what_the_converter_refuses(
    spoil: Callable[[Path], None],
    problem: str,
    copied: Path,
    run: Callable[..., int],
    target: Path,
    capsys: Capsys,
) -> None:
    spoil(copied)
    assert run(copied, target) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{copied}: llama.cpp's converter: {problem} (all it said is in ")
    assert list(target.parent.iterdir()) == []
    assert not (copied / "was-run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(copied: Path, run: Callable[..., int], target: Path, capsys: Capsys) -> None:
    target.parent.mkdir()
    target.with_name(target.name + ".part").symlink_to("/dev/full")
    assert run(copied, target) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []
