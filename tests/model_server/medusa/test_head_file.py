from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader, GGUFValueType

from model_server.errors import HeadFileError, ModelFileError, StartError
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.medusa.head_file import MATRIX_TYPES
from tests import twin
from tests.model_server.medusa.conftest import WriteHeads
from tests.random_heads import HIDDEN, VOCAB, Kind

Array = npt.NDArray[np.generic]

_TYPES = {bool: GGUFValueType.BOOL, str: GGUFValueType.STRING, int: GGUFValueType.UINT32}


def altered(
    source: Path,
    values: Mapping[str, str | int | None] | None = None,
    tensors: Mapping[str, Array | None] | None = None,
) -> Path:
    """A copy of a head file with some values and (unquantized) tensors replaced, None: left out."""
    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()} | dict(values or {})
    arrays = {t.name: np.array(t.data) for t in reader.tensors} | dict(tensors or {})
    target = source.with_name("altered.gguf")
    writer = gguf.GGUFWriter(target, fields["general.architecture"])
    for name, value in fields.items():
        if name.startswith("medusa.") and value is not None:
            writer.add_key_value(name, value, _TYPES[type(value)])
    for name, array in arrays.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def refusal(path: Path, base: Model) -> str:
    """The sentence a file is refused with, which always begins with the setting and the file."""
    with pytest.raises(HeadFileError) as refused:
        head_file.read(path, base)
    start = f"MEDUSA_PATH {path}: "
    assert str(refused.value).startswith(start)
    return str(refused.value).removeprefix(start)


def test_a_file_is_read(write_heads: WriteHeads, base: Model) -> None:
    path = write_heads(Kind("Q8_0", num_heads=3, num_blocks=2, trim=100, calibrated=True))
    file = head_file.read(path, base)
    assert (file.num_heads, file.hidden_size, file.vocab_size) == (3, HIDDEN, VOCAB)
    assert [len(part) for block in file.blocks for part in (block.weights, block.biases)] == [3] * 4
    assert [tensor.name for tensor in file.outputs] == [f"head.{i}.output.weight" for i in range(3)]
    assert not file.shared_output
    stored = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    assert file.tokens is not None
    assert file.tokens.tolist() == stored["vocab_trim"].tolist()
    assert file.num_tokens == 100
    assert (file.token_weights, file.embedding) == ([], None)
    assert file.calibration is not None
    for part, name in zip(file.calibration, ("accuracy", "count"), strict=True):
        assert (part == stored[f"calibration.{name}"]).all()


def test_heads_that_know_the_drawn_token_use_the_base_s_embedding(
    write_heads: WriteHeads, base: Model
) -> None:
    file = head_file.read(write_heads(Kind("Q8_0", token=True)), base)
    assert [each.name for each in file.token_weights] == [
        f"head.{i}.token.weight" for i in range(3)
    ]
    assert file.embedding is not None
    assert (file.embedding.name, file.embedding.shape) == ("token_embd.weight", (VOCAB, HIDDEN))


def test_optional_parts_may_be_absent(write_heads: WriteHeads, base: Model) -> None:
    file = head_file.read(write_heads(Kind(num_heads=1, num_blocks=0, shared=True)), base)
    assert file.blocks == []
    assert [tensor.name for tensor in file.outputs] == ["output.weight"]
    assert file.tokens is None
    assert file.calibration is None
    assert file.num_tokens == VOCAB


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("general.architecture", "llama", "general.architecture is llama, must be medusa"),
        ("medusa.format_version", 3, "medusa.format_version is 3, must be 1 to 2"),
        (
            "medusa.format_version",
            2,
            f"head.0.token.weight is missing, must be {' or '.join(MATRIX_TYPES)} (256, 256)",
        ),
        ("medusa.format_version", None, "medusa.format_version is missing, must be a u32"),
        ("medusa.format_version", "1", "medusa.format_version is missing, must be a u32"),
        ("medusa.head_count", 0, "medusa.head_count is 0, must be 1 to 16"),
        ("medusa.head_count", 17, "medusa.head_count is 17, must be 1 to 16"),
        ("medusa.head_count", 4, "head.3.block.0.weight is missing, must be F32 (256, 256)"),
        ("medusa.block_count", 9, "medusa.block_count is 9, must be 0 to 8"),
        ("medusa.embedding_length", 255, "medusa.embedding_length is 255, must be 256"),
        ("medusa.vocab_size", 32_000, "medusa.vocab_size is 32000, must be 512"),
        ("medusa.shared_output", None, "medusa.shared_output is missing, must be a bool"),
        ("medusa.base_fingerprint", None, "medusa.base_fingerprint is missing, must be a string"),
    ],
)
def test_a_wrong_value_is_named(
    write_heads: WriteHeads, base: Model, field: str, value: str | int | None, sentence: str
) -> None:
    assert refusal(altered(write_heads(Kind()), {field: value}), base) == sentence


def floats(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("tensor", "array", "sentence"),
    [
        ("head.0.block.0.weight", floats(256, 255), "has shape (256, 255), must be (256, 256)"),
        ("head.1.token.weight", None, "is missing, must be F32 (256, 256)"),
        ("head.1.token.weight", floats(256, 255), "has shape (256, 255), must be (256, 256)"),
        ("head.1.block.0.bias", None, "is missing, must be F32 (256,)"),
        ("head.1.block.0.bias", floats(2, 128), "has shape (2, 128), must be (256,)"),
        ("head.1.block.0.bias", np.zeros(256, np.float16), "is F16, must be F32"),
        ("head.2.output.weight", floats(511, 256), "has shape (511, 256), must be (512, 256)"),
        ("head.2.output.weight", np.zeros((512, 256), np.float16), "is F16, must be F32"),
        ("head.0.output.weight", np.zeros((512, 256), np.int32), "is I32, must be F32 or F16 or "),
        ("calibration.count", None, "is missing, must be F32 (3, 24)"),
        ("calibration.accuracy", floats(3, 23), "has shape (3, 23), must be (3, 24)"),
        ("calibration.accuracy", np.zeros((3, 24), np.float16), "is F16, must be F32"),
        ("calibration.accuracy", floats(3, 24) + np.float32(np.nan), "holds nan, must be 0 to 1"),
        ("calibration.accuracy", floats(3, 24) + 2, "holds 2, must be 0 to 1"),
        ("calibration.count", floats(3, 24) - 4, "holds -4, must be 0 or more"),
        ("calibration.count", floats(3, 24) + np.float32(np.inf), "holds inf, must be 0 or more"),
        ("vocab_trim", floats(512), "is F32, must be I32"),
        ("vocab_trim", np.zeros((2, 256), np.int32), "has shape (2, 256), must be (256,)"),
    ],
)
def test_a_wrong_tensor_is_named(
    write_heads: WriteHeads, base: Model, tensor: str, array: Array | None, sentence: str
) -> None:
    path = altered(write_heads(Kind(calibrated=True, token=True)), tensors={tensor: array})
    assert refusal(path, base).startswith(f"{tensor} {sentence}")


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([0, 512, 3], "vocab_trim holds token 512, must be 0 to 511"),
        ([0, -1, 3], "vocab_trim holds token -1, must be 0 to 511"),
        ([5, 3, 5], "vocab_trim holds token 5 more than once"),
    ],
)
def test_tokens_that_do_not_exist_are_refused(
    write_heads: WriteHeads, base: Model, tokens: list[int], sentence: str
) -> None:
    path = altered(write_heads(Kind(trim=3)), tensors={"vocab_trim": np.array(tokens, np.int32)})
    assert refusal(path, base) == sentence


def test_heads_of_another_base_are_refused(
    write_heads: WriteHeads, base: Model, model: Model
) -> None:
    other, own = model.base_fingerprint, base.base_fingerprint
    path = write_heads(Kind(base_fingerprint=other))
    assert refusal(path, base) == (
        f"medusa.base_fingerprint is {other}, that of {base.path.name} is {own}: "
        "these heads were made for another base"
    )
    assert head_file.read(path, base, any_base=True).num_heads == 3
    head_file.read(write_heads(Kind(base_fingerprint=own)), base)


def test_any_base_still_has_to_fit(write_heads: WriteHeads, model: Model) -> None:
    with pytest.raises(
        StartError, match=f"embedding_length is {HIDDEN}, must be {twin.TINY.hidden}"
    ):
        head_file.read(write_heads(Kind()), model, any_base=True)


def test_truncated_files_are_refused(write_heads: WriteHeads, base: Model) -> None:
    path = write_heads(Kind())
    raw = path.read_bytes()
    for size in (0, 10, 500, len(raw) // 2, len(raw) - 64):
        path.write_bytes(raw[:size])
        sentence = refusal(path, base)
        assert "not a readable GGUF" in sentence or "cut off: head." in sentence
    path.unlink()
    assert refusal(path, base) == "no such file"


def test_files_in_each_others_place_are_told_before_anything_is_loaded(
    write_heads: WriteHeads, random_model_path: Path
) -> None:
    heads = write_heads(Kind())
    with pytest.raises(ModelFileError) as refused:
        head_file.require_roles(heads, None)
    problem = "holds Medusa heads, where a base model belongs: heads are for MEDUSA_PATH"
    assert str(refused.value) == f"MODEL_PATH {heads}: {problem}"
    with pytest.raises(HeadFileError) as refused_heads:
        head_file.require_roles(random_model_path, random_model_path)
    problem = "holds a base model (architecture llama), where Medusa heads belong"
    assert str(refused_heads.value) == f"MEDUSA_PATH {random_model_path}: {problem}"
    head_file.require_roles(random_model_path, heads)


def test_heads_of_another_size_are_told_before_anything_is_loaded(
    write_heads: WriteHeads, random_model_path: Path
) -> None:
    heads = write_heads(Kind(hidden=2 * HIDDEN))
    with pytest.raises(HeadFileError) as refused:
        head_file.require_roles(random_model_path, heads)
    assert str(refused.value) == (
        f"MEDUSA_PATH {heads}: its hidden size is {2 * HIDDEN}, that of {random_model_path.name} "
        f"is {HIDDEN}: these heads were made for another base"
    )


def test_what_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    head_file.require_roles(broken, tmp_path / "none.gguf")
