"""From nothing to a base model with heads, ready to serve."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from model_server.llama.gguf import GgufHeader, base_fingerprint
from model_server.llama.model import Model
from model_server.medusa import head_file
from model_server.tools.download import next_command, source_named
from model_server.tools.preset_files import PresetFiles
from model_server.tools.presets import MODELS, PRESETS, HubFile
from tests import checkpoints
from tests.checkpoints import Weights
from tests.model_server.tools.converting import as_bf16
from tests.model_server.tools.downloading import BASE, HEADS, Downloader, interrupt_writing

Q8_0, Q4_0 = "vicuna-7b-v1.3-q8_0.gguf", "vicuna-7b-v1.3-q4_0.gguf"
WEIGHTS, HEAD_FILE = "medusa_lm_head.pt", "medusa-heads.gguf"


@pytest.fixture
def published(downloader: Downloader, random_q8_path: Path, tmp_path: Path) -> Downloader:
    """A hub with all of the preset's files."""
    arrays = as_bf16(checkpoints.original(Weights.random(3)))
    downloader.hub.add(BASE, random_q8_path)
    downloader.hub.add(HEADS, checkpoints.write_pt(tmp_path / "published.pt", arrays))
    return downloader


def assert_ready(downloader: Downloader, base_file: str) -> None:
    """llama.cpp loads the base, and the heads are read as made for it."""
    base = Model(downloader.folder / base_file, n_gpu_layers=0)
    file = head_file.read(downloader.folder / HEAD_FILE, base)
    assert file.num_heads == 3
    header, heads = base.open_header(), GgufHeader(downloader.folder / HEAD_FILE)
    assert heads.string("medusa.base_fingerprint") == base_fingerprint(header)
    header.close()
    heads.close()
    base.close()


def test_one_command_makes_it_ready(published: Downloader, random_q8_path: Path) -> None:
    said = published.run("vicuna-7b")
    assert published.names == [HEAD_FILE, WEIGHTS, Q8_0]
    assert (published.folder / Q8_0).read_bytes() == random_q8_path.read_bytes()
    assert_ready(published, Q8_0)
    assert said.endswith(f"Serve them: make run MODEL={published.folder}\n")


def test_a_second_run_does_nothing(published: Downloader) -> None:
    published.run("vicuna-7b")
    before = published.hub.num_requests
    times = {path: path.stat().st_mtime_ns for path in published.folder.iterdir()}
    assert published.run("vicuna-7b").startswith("Nothing to do: ")
    assert {path: path.stat().st_mtime_ns for path in published.folder.iterdir()} == times
    assert published.hub.num_requests == before


def test_another_quantization_is_made_of_what_was_fetched(published: Downloader) -> None:
    published.run("vicuna-7b")
    before = published.hub.num_requests
    said = published.run("vicuna-7b", "--quant", "q4_0")
    assert published.names == [HEAD_FILE, WEIGHTS, Q4_0, Q8_0]
    assert_ready(published, Q4_0)
    assert "Its weights are Q8_0 already. Rounding twice costs quality" in said
    assert "Quantizing from F16 is best." in said
    assert said.endswith(f"make run MODEL={published.folder} QUANT=Q4_0\n")
    assert published.hub.num_requests == before
    (published.folder / Q8_0).unlink()
    assert published.run("vicuna-7b", "--quant", "Q4_0").startswith("Nothing to do: ")


def test_files_put_there_by_hand_are_taken(published: Downloader, random_q8_path: Path) -> None:
    """As the sentence about a missing network says."""
    published.folder.mkdir(parents=True)
    for name in (BASE, HEADS):
        path = published.hub.files[name]
        (published.folder / name.rpartition("/")[2]).write_bytes(path.read_bytes())
    published.run("vicuna-7b", HF_ENDPOINT="http://127.0.0.1:1")
    assert_ready(published, Q8_0)


def test_a_truncated_base_is_named(published: Downloader, random_q8_path: Path) -> None:
    published.run("vicuna-7b")
    path = published.folder / Q8_0
    path.write_bytes(random_q8_path.read_bytes()[:-5_000])
    assert published.refused("vicuna-7b").startswith(f"{path}: cut off: ")


def test_a_missing_file_is_found_before_gigabytes_are_fetched(published: Downloader) -> None:
    del published.hub.files[HEADS]
    assert published.refused("vicuna-7b").startswith(f"{HEADS}: not found (404)")
    assert published.hub.asked == []


def test_room_is_needed_for_what_is_made_too(
    published: Downloader, random_q8_path: Path, tmp_path: Path
) -> None:
    plan = PresetFiles(PRESETS["vicuna-7b"], "Q4_0", tmp_path)
    plan.published_base.symlink_to(random_q8_path)
    plan.published_heads.symlink_to(published.hub.files[HEADS])
    sizes = {plan.published_base: 8_500, plan.published_heads: 16_000}
    assert plan._made_bytes(sizes) == 4_550 + 8_500
    assert PresetFiles(PRESETS["vicuna-7b"], "Q8_0", tmp_path)._made_bytes(sizes) == 8_500


def test_heads_that_do_not_fit_are_refused(published: Downloader, tmp_path: Path) -> None:
    arrays = as_bf16(checkpoints.original(Weights.random(hidden=128)))
    published.hub.add(HEADS, checkpoints.write_pt(tmp_path / "other.pt", arrays))
    assert "made for another base" in published.refused("vicuna-7b")
    assert published.names == [WEIGHTS, Q8_0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_quantizing_leaves_no_half_file(
    how: signal.Signals, published: Downloader
) -> None:
    published.folder.mkdir(parents=True)
    half = published.folder / f"{Q4_0}.part"
    os.mkfifo(half)
    error = interrupt_writing(published.start("vicuna-7b", "--quant", "Q4_0"), half, how)
    assert error == "Interrupted: what was fetched is kept, the same command continues."
    assert published.names == [WEIGHTS, Q8_0]
    asked = len(published.hub.asked)
    published.run("vicuna-7b", "--quant", "Q4_0")
    assert_ready(published, Q4_0)
    assert len(published.hub.asked) == asked


def test_another_ones_heads_are_not_converted(published: Downloader) -> None:
    other = f"someone/else/{WEIGHTS}"
    published.hub.add(other, published.hub.files[HEADS])
    published.run(other)
    said = published.refused("vicuna-7b")
    assert said.startswith(f"{HEADS}: {published.folder / WEIGHTS} is {other}, revision main: ")


def test_quantizing_goes_with_presets(downloader: Downloader) -> None:
    error = downloader.refused("a/b/c.gguf", "--quant", "Q4_0")
    assert error == "--quant: goes with vicuna-7b; for other files there is `quantize`"


def test_files_of_the_hub_are_named_in_two_ways() -> None:
    assert source_named("a/b/c/d.gguf", "v1") == HubFile("a/b", "c/d.gguf", "v1")
    assert source_named("https://huggingface.co/a/b/resolve/main/d.gguf?x=1", "v1") == HubFile(
        "a/b", "d.gguf", "main"
    )
    page = "https://huggingface.co/a/b/blob/refs%2Fpr%2F1/sub/my%20%E6%A8%A1.gguf#L3"
    assert source_named(page, "v1") == HubFile("a/b", "sub/my \u6a21.gguf", "refs/pr/1")


def test_what_to_do_next(tmp_path: Path) -> None:
    base, other = tmp_path / "base.gguf", tmp_path / "other.gguf"
    base.touch()
    assert next_command(base) == f"make run MODEL={tmp_path}"
    assert next_command(tmp_path / "heads.pt") == (
        f"python -m model_server.tools.convert_heads {tmp_path}/heads.pt "
        f"{tmp_path}/medusa-heads.gguf --base {base}"
    )
    other.touch()
    assert next_command(base) == f"make run MODEL={base}"


def test_of_a_split_model_the_first_file_is_served(downloader: Downloader, tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    (tmp_path / "file").write_text("a part")
    for name in names:
        downloader.hub.add(f"a/b/{name}", tmp_path / "file")
    said = downloader.run(f"a/b/{names[1]}")
    assert said.endswith(f"Still missing of this model: {names[0]}, {names[2]}\n")
    downloader.run(f"a/b/{names[0]}")
    said = downloader.run(f"a/b/{names[2]}")
    assert said.endswith(f"Next: make run MODEL={downloader.folder}\n")


def test_models_are_where_they_are_looked_for() -> None:
    assert MODELS.absolute().resolve().parent == Path(__file__).resolve().parents[3]
