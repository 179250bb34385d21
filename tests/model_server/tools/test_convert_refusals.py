from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model_server.llama.gguf import GgufHeader
from model_server.llama.model import Model
from model_server.medusa import head_file
from tests import checkpoints
from tests.checkpoints import Floats, Fp8, Values, Weights
from tests.model_server.tools.converting import LAYOUTS, Capsys, refused, run, v01_pt


def test_shared_outputs_need_the_base(
    capsys: Capsys,
    folder: Path,
    target: Path,
    random_q8_path: Path,
    base: Model,
) -> None:
    source = v01_pt(folder, Weights.random(shared=True))
    error = refused(capsys, source, target)
    assert error == (
        f"{source}: the heads don't say how many tokens their base has: name it with --base"
    )
    assert run(source, target, "--base", random_q8_path) == 0
    assert head_file.read(target, base).shared_output


@pytest.mark.parametrize(
    ("text", "keep", "problem"),
    [
        ("5 10\n", 2, "names 1 tokens, of which --keep 2"),
        ("5 ten\n", 1, "must hold lines of a token id and a count"),
        ("512 10\n", 1, "token 512: must be 0 to 511"),
        ("-1 10\n", 1, "token -1: must be 0 to 511"),
        ("4294967296 10\n", 1, "token 4294967296: must be 0 to 511"),
        ("99999999999999999999 10\n", 1, "must hold lines of a token id and a count"),
    ],
)
def test_frequencies_that_cannot_be_used(
    text: str,
    keep: int,
    problem: str,
    capsys: Capsys,
    folder: Path,
    target: Path,
) -> None:
    (folder / "counts.txt").write_text(text)
    source = v01_pt(folder, Weights.random())
    options = ("--trim", folder / "counts.txt", "--keep", keep)
    assert problem in refused(capsys, source, target, *options)


def test_only_tokens_that_heads_know_are_kept(
    capsys: Capsys, folder: Path, target: Path, random_q8_path: Path
) -> None:
    """A base of 512 tokens, the last of them padding."""
    source = v01_pt(folder, Weights.random(vocab=508))
    (folder / "counts.txt").write_text("510 2\n")
    options = ("--base", random_q8_path, "--trim", folder / "counts.txt", "--keep", 1)
    error = refused(capsys, source, target, *options)
    assert error == f"{source}: token 510: must be 0 to 507"


@dataclass
class RunsCode:
    leaves: Path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.leaves}",)


def test_a_pickle_that_would_run_code_is_refused(
    capsys: Capsys, folder: Path, target: Path
) -> None:
    arrays = checkpoints.original(Weights.random())
    trace = folder / "was-run"
    path = checkpoints.write_pt(folder / "heads.pt", arrays, extra=RunsCode(trace))
    error = refused(capsys, path, target)
    assert error == (
        f"{path}: asks for posix.system, which weights don't need and which could run code: "
        "not read"
    )
    assert not trace.exists()
    pickle.loads(pickle.dumps(RunsCode(trace)))
    assert trace.exists()  # freely unpickled it runs


def without(arrays: dict[str, Floats], name: str) -> dict[str, Floats]:
    return {key: values for key, values in arrays.items() if key != name}


def with_nan(arrays: dict[str, Floats], name: str) -> dict[str, Floats]:
    spoiled = arrays[name].copy()
    spoiled[..., -1] = np.nan
    return {**arrays, name: spoiled}


HEADS = checkpoints.original(Weights.random(3))
WRONG = {
    "head 1 has no block 0, others have one": without(HEADS, "1.0.linear.weight"),
    "head 1 has no bias in block 0, others have one": without(HEADS, "1.0.linear.bias"),
    "head 2 has no output matrix, others have one": without(HEADS, "2.1.weight"),
    "0.1.weight is module 1 of its head, must be 2": {
        **HEADS,
        **{f"{i}.1.linear.weight": HEADS["0.0.linear.weight"] for i in range(3)},
    },
    "1.0.linear.weight has shape (2, 256), must be (256, 256)": {
        **HEADS,
        "1.0.linear.weight": HEADS["1.0.linear.weight"][:2],
    },
    "1.1.weight has shape (9, 256), must be (512, 256)": {
        **HEADS,
        "1.1.weight": HEADS["1.1.weight"][:9],
    },
    "1.1.weight row 0 is not finite": with_nan(HEADS, "1.1.weight"),
    "2.0.linear.bias value 255 is not finite": with_nan(HEADS, "2.0.linear.bias"),
    "0.0.linear.weight has shape (): is no matrix": {
        **HEADS,
        "0.0.linear.weight": np.array(1, np.float32),
    },
    "2.1.weight has shape (0, 256): is no matrix": {**HEADS, "2.1.weight": HEADS["2.1.weight"][:0]},
    "18 heads, at most 16": {**HEADS, "17.0.linear.weight": HEADS["0.0.linear.weight"]},
    "these look like an EAGLE draft": {"fc.weight": HEADS["0.1.weight"]},
    "heads fused into one tensor": {"medusa_head.weight": HEADS["0.1.weight"]},
    "a base model without heads": {"model.layers.0.mlp.weight": HEADS["0.1.weight"]},
}


@pytest.mark.parametrize("problem", WRONG)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_heads_that_cannot_be_used(
    problem: str, kind: str, capsys: Capsys, folder: Path, target: Path
) -> None:
    write = checkpoints.write_pt if kind == "pt" else checkpoints.write_safetensors
    path = write(folder / f"heads.{kind}", dict(WRONG[problem]))
    error = refused(capsys, path, target)
    assert error.startswith(f"{path}: ")
    assert problem in error


@pytest.mark.parametrize("layout", [checkpoints.original, checkpoints.vllm])
def test_a_type_that_is_not_known_is_named(
    layout: Callable[[Weights], dict[str, Floats]], capsys: Capsys, folder: Path, target: Path
) -> None:
    """Heads without their blocks would be others."""
    arrays = layout(Weights.random())
    blocks = [name for name in arrays if name.startswith("blocks.") or "linear" in name]
    path = folder / "heads.safetensors"
    fp8: dict[str, Values] = {**arrays, **{name: Fp8(arrays[name].shape) for name in blocks}}
    error = refused(capsys, checkpoints.write_safetensors(path, fp8), target)
    assert error == f"{path}: {blocks[0]} is F8_E4M3, must be F32 or F16 or BF16 or F64"


def test_a_type_that_is_not_known_beside_the_heads_does_no_harm(folder: Path, target: Path) -> None:
    heads = checkpoints.original(Weights.random())
    arrays: dict[str, Values] = {**heads, "scale": Fp8((3,))}
    assert run(checkpoints.write_safetensors(folder / "heads.safetensors", arrays), target) == 0


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("layout", ["v01_pt", "v01_safetensors"])
def test_a_truncated_file(
    layout: str, share: float, capsys: Capsys, folder: Path, target: Path
) -> None:
    path = LAYOUTS[layout](folder, Weights.random())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    error = refused(capsys, path, target)
    assert "cut off" in error or "not a readable safetensors file" in error


@pytest.mark.parametrize("given", [".", "pytorch_model-00001-of-00002.bin"])
def test_a_missing_shard_is_named(given: str, capsys: Capsys, folder: Path, target: Path) -> None:
    """Heads that lie in the others would be fewer. Of a shard, all are read."""
    LAYOUTS["v10_full_model"](folder, Weights.random())
    assert run(folder / given, target, "--type", "F32") == 0
    assert head_count(target) == 2
    target.unlink()
    capsys.readouterr()
    other = folder / "pytorch_model-00002-of-00002.bin"
    other.unlink()
    error = refused(capsys, folder / given, target)
    assert error == f"{other}: is missing, pytorch_model-00001-of-00002.bin is another part"


def head_count(path: Path) -> int | None:
    header = GgufHeader(path)
    found = header.integer("medusa.head_count")
    header.close()
    return found


def test_another_base(capsys: Capsys, folder: Path, target: Path, random_q8_path: Path) -> None:
    source = v01_pt(folder, Weights.random(hidden=128))
    error = refused(capsys, source, target, "--base", random_q8_path)
    assert error == (
        f"{source}: its hidden size is 128, that of {random_q8_path.name} is 256: "
        "made for another base"
    )


@pytest.mark.parametrize("source", ["nothing.pt", "."])
def test_nothing_there(source: str, capsys: Capsys, folder: Path, target: Path) -> None:
    error = refused(capsys, folder / source, target)
    assert "no such file or folder" in error or "holds no file that ends in" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(capsys: Capsys, folder: Path, target: Path) -> None:
    source = v01_pt(folder, Weights.random())
    target.parent.mkdir()
    part = target.with_name(target.name + ".part")
    part.symlink_to("/dev/full")
    assert run(source, target) == 1
    error = capsys.readouterr().err
    assert error == f"{target}: No space left on device (the disk is full)\n"
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("hidden", "file_type", "block"), [(100, "Q8_0", 32), (128, "Q4_K", 256)])
def test_a_hidden_size_that_a_type_cannot_hold(
    hidden: int, file_type: str, block: int, capsys: Capsys, folder: Path, target: Path
) -> None:
    source = v01_pt(folder, Weights.random(hidden=hidden))
    error = refused(capsys, source, target, "--type", file_type)
    assert error == (
        f"{source}: hidden size {hidden}, {file_type} needs multiples of {block}: "
        "choose another --type"
    )


@pytest.mark.parametrize(
    ("file_type", "value"), [("F16", 1e5), ("Q8_0", 1e10), ("Q4_0", 1e10), ("Q4_K", 1e10)]
)
def test_values_beyond_a_type(
    file_type: str, value: float, capsys: Capsys, folder: Path, target: Path
) -> None:
    """The server would call such heads damaged."""
    weights = Weights.random()
    assert weights.outputs is not None
    weights.outputs[1][3, 4] = -value
    source = checkpoints.write_pt(folder / "heads.pt", checkpoints.original(weights))
    error = refused(capsys, source, target, "--type", file_type)
    problem = f"would hold values that {file_type} has no numbers for: choose --type F32"
    assert error == f"{target}: {problem}"
    assert run(source, target, "--type", "F32") == 0


def test_heads_do_not_replace_what_they_are_made_from(
    capsys: Capsys, folder: Path, random_q8_path: Path
) -> None:
    source = v01_pt(folder, Weights.random())
    problem = "is what it would be made from: choose another name to write to"
    assert refused(capsys, source, source) == f"{source}: {problem}"
    error = refused(capsys, source, random_q8_path, "--base", random_q8_path)
    assert error == f"{random_q8_path}: {problem}"


def test_a_folder_in_the_place_of_the_target(capsys: Capsys, folder: Path, target: Path) -> None:
    source = v01_pt(folder, Weights.random())
    target.mkdir(parents=True)
    assert refused(capsys, source, target) == f"{target}: Is a directory"


@pytest.mark.parametrize("layout", ["v01_pt", "v01_safetensors"])
def test_spoiled_files_are_refused_or_read_but_never_crash(
    layout: str, capsys: Capsys, folder: Path, target: Path
) -> None:
    """Bytes changed at random where names, shapes and places are told."""
    path = LAYOUTS[layout](folder, Weights.random(hidden=32, vocab=32))
    good = path.read_bytes()
    told = range(len(good)) if layout == "v01_pt" else range(1200)
    rng, outcomes = random.Random(0), set()
    for _ in range(300):
        spoiled = bytearray(good)
        for place in rng.choices(told, k=rng.randrange(1, 4)):
            spoiled[place] = rng.randrange(256)
        path.write_bytes(spoiled)
        outcomes.add(code := run(path, target))
        assert capsys.readouterr().err.count("\n") == code
    assert outcomes == {0, 1}
