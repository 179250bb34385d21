"""Fetching one file, with everything that can go wrong on the way."""

from __future__ import annotations

import fcntl
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_server.tools.outcome import INTERRUPTED
from tests.hub import Asked, Hub
from tests.model_server.tools.downloading import Downloader, sentences
from tests.ports import free_port

FILE = "someone/a-model/sub/m.gguf"
BYTES_AT = 300_000


@pytest.fixture
def data(hub: Hub, tmp_path: Path) -> bytes:
    made = np.random.default_rng(0).bytes(1_000_000)
    (tmp_path / "published").write_bytes(made)
    hub.add(FILE, tmp_path / "published")
    return made


def part(downloader: Downloader) -> Path:
    """Where the bytes gather."""
    return downloader.folder / f"m.gguf.{downloader.hub.digests[FILE][:12]}.part"


def test_a_file_lies_once_where_it_was_said(downloader: Downloader, data: bytes) -> None:
    said = downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data
    assert downloader.names == ["m.gguf"]
    assert "m.gguf: 1.0 MB, checksum verified" in said
    assert f"Next: make run MODEL={downloader.folder}\n" in said
    assert not downloader.home.exists()


def test_the_address_of_a_page_names_a_file(downloader: Downloader, data: bytes) -> None:
    downloader.run(f"{downloader.hub.url}/someone/a-model/blob/main/sub/m.gguf?download=true")
    assert (downloader.folder / "m.gguf").read_bytes() == data


def test_a_second_run_asks_nobody(downloader: Downloader, data: bytes) -> None:
    downloader.run(FILE)
    before = downloader.hub.num_requests
    assert "Nothing to do" in downloader.run(FILE)
    assert downloader.hub.num_requests == before


def test_another_repositorys_file_is_not_taken_for_this_one(
    downloader: Downloader, data: bytes
) -> None:
    """Nor that of another revision; one that was put there by hand is."""
    downloader.run(FILE)
    target = downloader.folder / "m.gguf"
    downloader.hub.add("other/a-model/m.gguf", downloader.hub.files[FILE])
    is_other = f"{target} is {FILE}, revision main: name another folder by --out, or remove it"
    other = "other/a-model/m.gguf"
    assert downloader.refused(other) == f"{other}: {is_other}"
    assert downloader.refused(FILE, "--revision", "v2") == f"{FILE}: {is_other}"
    target.unlink()
    downloader.run(other)
    (downloader.folder / "m.gguf.source").unlink()
    assert "Nothing to do" in downloader.run(FILE)


def test_a_cut_connection_goes_on_where_it_broke(downloader: Downloader, data: bytes) -> None:
    downloader.hub.faults = replace(downloader.hub.faults, cut_after=BYTES_AT, cuts=2)
    downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data
    assert [each.start for each in downloader.hub.asked] == [0, BYTES_AT, 2 * BYTES_AT]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_download_continues(
    how: signal.Signals, downloader: Downloader, data: bytes
) -> None:
    hub = downloader.hub
    hub.faults.stall_after = BYTES_AT
    process = downloader.start(FILE)
    assert hub.stalled.wait(30)
    while not part(downloader).exists() or not part(downloader).stat().st_size:
        assert process.poll() is None
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, err
    assert sentences(err) == ["Interrupted: what was fetched is kept, the same command continues."]
    kept = part(downloader).stat().st_size
    assert 0 < kept <= BYTES_AT
    hub.faults.stall_after = None
    downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data
    assert [each.start for each in hub.asked] == [0, kept]


def test_a_hub_without_ranges_starts_over(downloader: Downloader, data: bytes) -> None:
    downloader.folder.mkdir(parents=True)
    part(downloader).write_bytes(b"whatever")
    downloader.hub.faults.no_ranges = True
    downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data


def test_more_than_there_is_starts_over(downloader: Downloader, data: bytes) -> None:
    downloader.folder.mkdir(parents=True)
    part(downloader).write_bytes(data + b"more")
    downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data


def test_another_version_is_not_continued(downloader: Downloader, data: bytes) -> None:
    downloader.folder.mkdir(parents=True)
    (downloader.folder / "m.gguf.0123456789ab.part").write_bytes(b"the file before")
    downloader.run(FILE)
    assert downloader.hub.asked[0].start == 0
    assert downloader.names == ["m.gguf"]


def test_wrong_bytes_are_deleted(downloader: Downloader, data: bytes) -> None:
    downloader.hub.faults.spoiled = True
    error = downloader.refused(FILE)
    assert error.startswith(f"{FILE}: wrong checksum ")
    assert f"the hub states {downloader.hub.digests[FILE][:12]}...: deleted, run again" in error
    assert downloader.names == []
    downloader.hub.faults.spoiled = False
    downloader.run(FILE)
    assert (downloader.folder / "m.gguf").read_bytes() == data


def test_small_files_are_checked_as_git_does(downloader: Downloader, data: bytes) -> None:
    """Outside of LFS the hub states git's own digest."""
    hub = downloader.hub
    (downloader.home.parent / "empty").write_bytes(b"")
    hub.add("someone/a-model/empty.txt", downloader.home.parent / "empty")
    hub.digests["someone/a-model/empty.txt"] = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    downloader.run("someone/a-model/empty.txt")
    hub.digests[FILE] = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert "wrong checksum" in downloader.refused(FILE)


def test_a_token_opens_and_stays_with_the_hub(downloader: Downloader, data: bytes) -> None:
    """Bytes come from another host, which must not learn it."""
    downloader.hub.faults.token = "hf_secret"
    error = downloader.refused(FILE)
    assert error.startswith(f"{FILE}: access refused (401): someone/a-model is private, gated or")
    assert "set HF_TOKEN" in error
    downloader.run(FILE, HF_TOKEN="hf_secret")
    assert downloader.hub.asked == [Asked(FILE, 0, None)]


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (403, "access refused (403): someone/a-model is private, gated or doesn't exist"),
        (429, "answers 429: try again later, what was fetched is kept"),
        (500, "answers 500: try again later, what was fetched is kept"),
    ],
)
def test_refusals_of_the_hub(
    status: int, problem: str, downloader: Downloader, data: bytes
) -> None:
    downloader.hub.faults.status = status
    assert problem in downloader.refused(FILE)
    assert downloader.names == []


def test_a_file_that_is_not_there(downloader: Downloader) -> None:
    url = downloader.hub.url
    error = downloader.refused("someone/a-model/none.gguf", "--revision", "v2")
    assert error == f"someone/a-model/none.gguf: not found (404) at {url}, revision v2"


def test_a_hub_that_states_no_checksum_is_none(downloader: Downloader, data: bytes) -> None:
    downloader.hub.faults.stated_checksum = False
    assert "states no size, commit or checksum of it" in downloader.refused(FILE)


def test_no_network(downloader: Downloader) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = downloader.refused(FILE, HF_ENDPOINT=url)
    assert error == (
        f"{FILE}: no connection to {url} ([Errno 111] Connection refused): run again, "
        f"what was fetched is kept, or put the file at {downloader.folder / 'm.gguf'} yourself"
    )


@pytest.mark.parametrize(
    "url",
    ["hub", "hub:80", "ftp://hub", "http://", "http://[::1", "http://hub:99999", "http://h:x"],
)
def test_an_endpoint_that_is_no_address(url: str, downloader: Downloader) -> None:
    error = downloader.refused(FILE, HF_ENDPOINT=url)
    assert error.startswith("HF_ENDPOINT: must be an address with http:// or https:// before it")
    assert error.endswith(f"got {url!r}")


def test_a_proxy_that_is_no_address(downloader: Downloader) -> None:
    assert "Invalid port" in downloader.refused(FILE, HTTP_PROXY="http://[::bad", NO_PROXY="")


def test_offline_mode(downloader: Downloader, data: bytes) -> None:
    assert "offline mode is enabled" in downloader.refused(FILE, HF_HUB_OFFLINE="1")


def test_too_little_room_is_said_before_anything_is_fetched(
    downloader: Downloader, data: bytes
) -> None:
    downloader.hub.faults.stated_size = 10**15
    error = downloader.refused(FILE)
    assert error.startswith(f"{downloader.folder}: 1000.0 TB of disk space are needed, ")
    assert error.endswith(" are free")
    assert downloader.hub.asked == []
    assert downloader.names == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(downloader: Downloader, data: bytes) -> None:
    downloader.folder.mkdir(parents=True)
    part(downloader).symlink_to("/dev/full")
    error = downloader.refused(FILE)
    assert error == f"{downloader.folder}: No space left on device (the disk is full)"


def test_two_at_once(downloader: Downloader, data: bytes) -> None:
    downloader.folder.mkdir(parents=True)
    with part(downloader).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert downloader.refused(FILE) == f"{FILE}: another process is fetching it"
    downloader.run(FILE)


@pytest.mark.parametrize("what", ["vicuna", "owner/repo", "https://elsewhere.org/a/b"])
def test_what_names_nothing(what: str, downloader: Downloader) -> None:
    error = downloader.refused(what)
    assert error == f"{what}: must be one of vicuna-7b, or OWNER/REPO/FILE of a hub"


def test_a_name_that_no_repository_has(downloader: Downloader) -> None:
    assert "..--/x/m.gguf: " in downloader.refused("..--/x/m.gguf")
