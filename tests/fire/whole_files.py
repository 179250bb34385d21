"""`python -m tests.fire.whole_files [--num N] [--seed S]`: the whole server on spoiled files.

Each start ends with a sentence and exit code 1, or serves until it is told to end. Exit code 1
where one ended otherwise: by a signal, with a traceback, or not at all. `tests.fire.files` tries
far more of them in the same time, without a server around them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx

from tests.e2e.service import Process
from tests.fire.files import BASE, Case, Spoiler, cases
from tests.ports import free_port

TIMEOUT_S = 120  # a trial may take 30 s, one of our kernels 15
ASKED = (
    {"id": "text", "prompt": "def f(é, <s> \n", "max_tokens": 6},
    {"id": "chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
)


@dataclass(frozen=True)
class Outcome:
    """How a start ended. `fault`: empty where all is as it should be; `said`: the last line."""

    case: Case
    word: str
    fault: str
    said: str
    took_s: float


def chosen(num: int, seed: int) -> list[Case]:
    """So many models and heads, of ways drawn by the seed."""
    each_way_often = islice(cases(seed), 8 * num + 200)
    whole = [case for case in each_way_often if case.kind != "pt"]
    return random.Random(seed).sample(whole, num)


def start(case: Case, folder: Path) -> Outcome:
    """Spoil the file, start the server on it, have it answer, end it."""
    path, port = Spoiler(folder).spoiled(case), free_port()
    # Heads would refuse most spoiled bases: they were made for another.
    base, heads = (path, "") if case.kind == "base" else (BASE, path)
    settings = {"model_server_port": port, "model_path": base, "medusa_path": heads}
    began, log = time.monotonic(), folder / "server.log"
    log.unlink(missing_ok=True)
    process = Process(
        "model_server", log, **settings, n_threads=1, model_context_size=256, n_parallel=2
    )
    try:
        word, fault = _outcome(process, f"http://127.0.0.1:{port}")
    finally:
        process.popen.kill()
        process.popen.wait()
    lines = process.log.splitlines() or [""]
    fault = fault or _fault_in(lines, refused=word == "refused")
    return Outcome(case, word, fault, lines[-1], time.monotonic() - began)


def _outcome(process: Process, url: str) -> tuple[str, str]:
    """In a word, and what is wrong with it."""
    with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as client:
        if not _is_ready(process, client):
            code = process.popen.poll()
            if code is None:
                return "hang", f"neither ready nor ended in {TIMEOUT_S} s"
            return "refused", "" if code == 1 else f"exit code {code}"
        try:
            ends = _ends(client)
        except httpx.TransportError as error:
            return "died", f"{error}, exit code {process.popen.poll()}"
    try:
        code = process.stop()
    except subprocess.TimeoutExpired:
        return "hang", "it did not end when it was told to"
    wrong = [end for end in ends if "bug" in str(end).lower()]
    word = "served" if all(end["event"] == "done" for end in ends) else "failed answers"
    return word, f"exit code {code}" if code else str(*wrong[:1])


def _is_ready(process: Process, client: httpx.Client) -> bool:
    give_up = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up and process.popen.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return True
        except httpx.TransportError:
            pass  # it does not listen yet, or has ended
        time.sleep(0.05)
    return False


def _ends(client: httpx.Client) -> Sequence[dict[str, object]]:
    """How each of a few requests ended."""
    answer = client.post("/batch", json={"id": "spoiled", "requests": ASKED})
    events = [json.loads(line) for line in answer.text.splitlines() if line]
    return [each for each in events if each["event"] in ("done", "error")]


def _fault_in(lines: Sequence[str], *, refused: bool) -> str:
    if any("Traceback" in line or "This is a bug" in line for line in lines):
        return "a traceback"
    if refused and not lines[-1].startswith("model server: "):
        return "no sentence"
    return ""


def run(num: int, seed: int) -> Iterator[Outcome]:
    """So many starts, one after the other; nothing is kept from one to the next."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        for case in chosen(num, seed):
            yield start(case, Path(name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire.whole_files", description=__doc__)
    parser.add_argument("--num", type=int, default=15, help="starts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_faults = 0
    for each in run(args.num, args.seed):
        num_faults += bool(each.fault)
        print(f"{each.case.kind} {each.case.way}: {each.word} in {each.took_s:.1f} s: {each.said}")
        if each.fault:
            print(f"    FAULT: {each.fault} ({each.case})")
        sys.stdout.flush()
    print(f"{args.num} starts, {num_faults} ended otherwise than by a sentence or by serving")
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
