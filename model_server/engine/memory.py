"""Whether the KV pool, and what a step gives, fit the free memory: a system that runs out of it
kills processes.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

from model_server import cgroups
from model_server.errors import SettingError
from model_server.llama.context import MAX_BATCH_ROWS, ContextOptions
from model_server.llama.model import Model

_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_GIB = 2**30
# As model_server/kernels has them.
MAX_PLAN_ROWS, MAX_SCRATCH_SCORES = 64, 8 << 20
_UNLIMITED = 2**60  # version 1 of cgroups says so by a number near 2^63

# Limit, use, and what of it is only the disk's cache: of cgroup v2 and v1.
_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def require(options: ContextOptions, model: Model) -> None:
    """Raises SettingError where the pool and a step need more than the memory that is free."""
    values = model.kv_values * model.share_on_cpu  # of a GPU's memory llama.cpp is told by an error
    if not values:
        return
    cell = sum(values * _BYTES[each] for each in (options.kv_type_k, options.kv_type_v))
    pool, free = options.num_cells * cell, available()
    step = outputs_bytes(model) + scratch_bytes(options, model)
    if pool + step > free:
        raise SettingError(
            "KV_CACHE_TOKENS",
            f"{options.num_cells} cells take {pool / _GIB:.1f} GiB, a step {step / _GIB:.1f} GiB, "
            f"and {free / _GIB:.1f} GiB of memory are free: at most "
            f"{max(0, int((free - step) / cell))} cells fit",
        )


def outputs_bytes(model: Model) -> int:
    """Of a step's most rows: an embedding by the mean needs the state behind every token of its
    prompt, and llama.cpp computes the logits beside it.
    """
    return 4 * MAX_BATCH_ROWS * (model.vocab.size + model.hidden_size)


def scratch_bytes(options: ContextOptions, model: Model) -> int:
    """Of our own attention for a long prompt, at most: the scores that each thread keeps, the mask
    of a step, and who sees each cell in each chunk of its rows.
    """
    if not options.own_attention:
        return 0
    cells, a_row = options.num_cells, options.num_cells * model.queries_a_kv_head
    rows = min(max(MAX_SCRATCH_SCORES // a_row, 1), MAX_PLAN_ROWS)
    plans = cells * (2 * MAX_BATCH_ROWS + 8 * -(-MAX_BATCH_ROWS // rows))
    return 4 * options.n_threads * rows * a_row + plans


def available(proc: Path = cgroups.PROC, groups: Path = cgroups.GROUPS) -> float:
    """Bytes that may still be taken here, inf where nothing says so: those of the machine, or of
    the container or service that this is, or one around it.
    """
    least = math.inf
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.M)
        least = 1_024 * int(found[1]) if found else least
    for controller, *names in _VERSIONS:
        for group in cgroups.around(controller, proc, groups):
            least = min(least, _left(group, *names))
    return least


def _left(group: Path, limit: str, use: str, cache: str) -> float:
    with suppress(OSError, ValueError):  # "max" is no number
        allowed, used = (int((group / name).read_text()) for name in (limit, use))
        cached = re.search(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.M)
        if allowed < _UNLIMITED:
            return max(0, allowed - used + (int(cached[1]) if cached else 0))
    return math.inf
