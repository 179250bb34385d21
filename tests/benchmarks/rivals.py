"""Other servers of GGUF files, at their best settings, found by a short search that is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

import httpx

from tests.benchmarks import files
from tests.benchmarks.servers import (
    Failed,
    Settings,
    Side,
    ik_llama_server,
    llama_cpp_server,
    llama_server,
    running,
)
from tests.benchmarks.vllm import vllm

# What is tried of each. A draft model for the demo there is not: it is the smallest of its family.
FLASH = ("-fa on", "-fa off")
NGRAM = (
    "--spec-type ngram-cache",
    "--spec-type ngram-simple --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 4",
    "--spec-type ngram-map-k --spec-ngram-map-k-size-n 3 --spec-ngram-map-k-size-m 4",
)
VLLM_NGRAM = '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":4}'
RIVALS = {
    "llama-server": FLASH,
    "llama-server+ngram": NGRAM,
    "llama_cpp.server": ("--flash_attn true", "--flash_attn false"),
    "ik_llama.cpp": ("", "-fa off", "-rtr"),
    "vLLM": ("", f"--speculative-config {VLLM_NGRAM}"),
}


def rival(name: str, flags: str, settings: Settings, jobs: int, binary: Path | None = None) -> Side:
    """One of RIVALS, with these flags. `jobs`: of a build where it is not there yet; `binary`: a
    llama-server to use instead of building.
    """
    extra = flags.split()
    if name == "ik_llama.cpp":
        return ik_llama_server(files.ik_llama_server(jobs), settings, extra)
    if name == "vLLM":
        return vllm(settings, extra)
    if name == "llama_cpp.server":
        return llama_cpp_server(settings, extra)
    side = llama_server(binary or files.llama_server(jobs), settings, extra)
    return Side(name, side.url, side.flags, side.processes)


def best(
    name: str,
    settings: Settings,
    jobs: int,
    rate: Callable[[Side], float],
    binary: Path | None = None,
) -> Side:
    """The fastest of what is tried; `rate` gives a running server's tokens a second."""
    tried: dict[str, float] = {}
    for flags in RIVALS[name]:
        try:
            with running(rival(name, flags, settings, jobs, binary)) as side:
                tried[flags] = rate(side)
        except (Failed, CalledProcessError, httpx.HTTPError) as error:
            print(f"  {name} {flags}: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"  {name} {flags}: {tried[flags]:.1f} tokens/s", flush=True)
    if not tried:
        raise Failed(f"{name} did not start with any of its settings")
    return rival(name, max(tried, key=tried.__getitem__), settings, jobs, binary)
