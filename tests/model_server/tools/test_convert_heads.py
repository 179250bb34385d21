from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_server.errors import HeadFileError
from model_server.llama.gguf import GgufHeader, base_fingerprint
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.tools.outcome import INTERRUPTED
from model_server.tools.weight_types import OF_HEADS
from tests import checkpoints, heads_reference, twin
from tests.checkpoints import Values, Weights
from tests.model_server.tools.converting import LAYOUTS, Capsys, refused, run, v01_pt


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_blocks", [0, 1, 2])
@pytest.mark.parametrize("num_heads", [2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(
    layout: str, num_heads: int, num_blocks: int, bias: bool, folder: Path, target: Path
) -> None:
    weights = Weights.random(num_heads, num_blocks, bias=bias)
    assert run(LAYOUTS[layout](folder, weights), target, "--type", "F32") == 0
    found = heads_reference.tensors(target)
    expected = {}
    assert weights.outputs is not None
    for i, blocks in enumerate(weights.blocks):
        expected[f"head.{i}.output.weight"] = weights.outputs[i]
        for j, (weight, offset) in enumerate(blocks):
            expected[f"head.{i}.block.{j}.weight"] = weight
            if offset is not None:
                expected[f"head.{i}.block.{j}.bias"] = offset
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("file_type", OF_HEADS)
def test_outputs_are_those_of_the_original(
    file_type: str, folder: Path, target: Path, base: Model
) -> None:
    weights = Weights.random(3, 2)
    assert run(v01_pt(folder, weights), target, "--type", file_type) == 0
    assert head_file.read(target, base).num_heads == 3
    hidden = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    found, _ = heads_reference.log_probs(target, hidden, 3)
    assert weights.outputs is not None
    for i, blocks in enumerate(weights.blocks):
        x = hidden
        for weight, bias in blocks:
            inner = x @ weight.T + (0 if bias is None else bias)
            x = x + inner / (1 + np.exp(-inner))
        logits = x @ weights.outputs[i].T
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        tolerance = {"F32": 1e-4, "F16": 0.01, "Q8_0": 0.1}.get(file_type, 1.5)
        assert np.abs(found[:, i] - expected).max() < tolerance


def test_the_base_is_checked_and_named(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    assert run(v01_pt(folder, Weights.random()), target, "--base", random_q8_path) == 0
    header = GgufHeader(target)
    base_header = GgufHeader(random_q8_path)
    assert header.string("medusa.base_fingerprint") == base_fingerprint(base_header)
    header.close()
    base_header.close()
    head_file.read(target, base)


def test_vllms_original_lm_head_is_the_bases(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    arrays = checkpoints.vllm(Weights.random(3))
    del arrays["lm_heads.1.weight"], arrays["lm_heads.2.weight"]
    source = checkpoints.write_safetensors(folder / "m.safetensors", arrays)
    assert run(source, target, "--base", random_q8_path) == 0
    file = head_file.read(target, base)
    assert file.shared_output
    assert file.num_heads == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_pad_the_vocabulary_are_left_out(
    layout: str, folder: Path, target: Path, tmp_path: Path
) -> None:
    """508 tokens, 512 rows."""
    shape = replace(twin.TINY, vocab_size=508)
    base = twin.write(tmp_path / "base.gguf", shape=shape)
    weights = Weights.random(2, hidden=shape.hidden, vocab=512)
    options = ("--base", base, "--type", "F32")
    assert run(LAYOUTS[layout](folder, weights), target, *options) == 0
    assert weights.outputs is not None
    found = heads_reference.tensors(target)
    np.testing.assert_array_equal(found["head.1.output.weight"], weights.outputs[1][:508])
    assert "vocab_trim" not in found
    loaded = Model(base, 0)
    assert head_file.read(target, loaded).num_tokens == 508
    loaded.close()


def test_a_base_that_is_padded_has_tokens_that_heads_do_not_know(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    weights = Weights.random(2, vocab=508)
    assert run(v01_pt(folder, weights), target, "--base", random_q8_path) == 0
    file = head_file.read(target, base)
    assert file.tokens is not None
    assert file.tokens.tolist() == list(range(508))


@pytest.mark.parametrize("vocab", [300, 600, 640, 1_024])
def test_other_vocabularies_are_another_bases(
    vocab: int, folder: Path, target: Path, random_q8_path: Path
) -> None:
    source = v01_pt(folder, Weights.random(2, vocab=vocab))
    assert run(source, target, "--base", random_q8_path) == 1


def test_a_shared_matrix_is_named(
    folder: Path, target: Path, random_q8_path: Path, base: Model, tmp_path: Path
) -> None:
    source = v01_pt(folder, Weights.random(2, 1, shared=True))
    assert run(source, target, "--base", random_q8_path) == 0
    header = GgufHeader(target)
    assert header.string("medusa.shared_output_name") == "output.weight"
    header.close()
    assert [each.name for each in head_file.read(target, base).outputs] == ["output.weight"]
    raw = target.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(raw.replace(b"output.weight", b"autput.weight", 1))
    with pytest.raises(HeadFileError, match=r"autput\.weight of"):
        head_file.read(other, base)


def test_vllms_token_map_becomes_the_trim(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    tokens = np.array([7, 3, 500], np.int64)
    arrays: dict[str, Values] = {**checkpoints.vllm(Weights.random(vocab=3)), "token_map": tokens}
    source = checkpoints.write_safetensors(folder / "m.safetensors", arrays)
    assert run(source, target, "--base", random_q8_path) == 0
    file = head_file.read(target, base)
    assert file.tokens is not None
    assert file.tokens.tolist() == [7, 3, 500]


def test_vllms_token_map_picks_of_full_matrices(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    """As vLLM does when it loads them."""
    weights, tokens = Weights.random(), np.array([7, 3, 500], np.int64)
    arrays: dict[str, Values] = {**checkpoints.vllm(weights), "token_map": tokens}
    source = checkpoints.write_safetensors(folder / "m.safetensors", arrays)
    assert run(source, target, "--base", random_q8_path, "--type", "F32") == 0
    file = head_file.read(target, base)
    assert file.tokens is not None
    assert file.tokens.tolist() == [7, 3, 500]
    assert weights.outputs is not None
    stored = heads_reference.tensors(target)["head.1.output.weight"]
    np.testing.assert_array_equal(stored, weights.outputs[1][tokens])


def test_vllms_token_map_may_be_of_the_bases_matrix(
    folder: Path, target: Path, random_q8_path: Path, base: Model
) -> None:
    arrays: dict[str, Values] = {**checkpoints.vllm(Weights.random(3))}
    del arrays["lm_heads.1.weight"], arrays["lm_heads.2.weight"]
    arrays["token_map"] = np.array([7, 3, 500], np.int64)
    source = checkpoints.write_safetensors(folder / "m.safetensors", arrays)
    assert run(source, target, "--base", random_q8_path) == 0
    file = head_file.read(target, base)
    assert file.shared_output
    assert file.tokens is not None
    assert file.tokens.tolist() == [7, 3, 500]


@pytest.mark.parametrize("num_tokens", [0, 513])
def test_a_token_map_fits_the_rows(
    num_tokens: int, capsys: Capsys, folder: Path, target: Path
) -> None:
    tokens = np.arange(num_tokens, dtype=np.int64)
    arrays: dict[str, Values] = {**checkpoints.vllm(Weights.random()), "token_map": tokens}
    source = checkpoints.write_safetensors(folder / "m.safetensors", arrays)
    error = refused(capsys, source, target)
    assert error == f"{source}: token_map has {num_tokens} tokens, must have 1 to 512"


def test_the_most_frequent_tokens_are_kept(folder: Path, target: Path, base: Model) -> None:
    weights = Weights.random()
    frequencies = folder / "counts.txt"
    frequencies.write_text("5 10\n9 30\n\n1 20\n2 10\n")
    source = v01_pt(folder, weights)
    options = ("--type", "F32", "--trim", frequencies, "--keep", "3")
    assert run(source, target, *options) == 0
    file = head_file.read(target, base)
    assert file.tokens is not None
    assert file.tokens.tolist() == [1, 2, 9]
    assert weights.outputs is not None
    stored = heads_reference.tensors(target)["head.1.output.weight"]
    np.testing.assert_array_equal(stored, weights.outputs[1][[1, 2, 9]])


def test_a_rerun_replaces_what_was_there(folder: Path, target: Path) -> None:
    source = v01_pt(folder, Weights.random())
    target.parent.mkdir()
    target.write_text("old")
    target.with_name(target.name + ".part").write_text("left by a conversion that was killed")
    assert run(source, target) == 0
    assert target.stat().st_size > 100_000
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(how: signal.Signals, folder: Path, target: Path) -> None:
    source = v01_pt(folder, Weights.random(hidden=1_024, vocab=8_192))
    command = [sys.executable, "-m", "model_server.tools.convert_heads", "--type", "Q4_K"]
    process = subprocess.Popen(
        [*command, str(source), str(target)], stderr=subprocess.PIPE, text=True
    )
    while not target.with_name(target.name + ".part").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (INTERRUPTED, "Interrupted: nothing was written.\n")
    assert list(target.parent.iterdir()) == []
