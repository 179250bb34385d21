"""Types of weights: the bits of each, what makes them, and the one that a file's name tells."""

from __future__ import annotations

import re
from pathlib import Path

# That a weight of a 7B Llama takes.
BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.57,
    "Q5_K_M": 5.68,
    "Q5_K_S": 5.53,
    "Q5_0": 5.53,
    "Q4_K_M": 4.85,
    "Q4_K_S": 4.58,
    "Q4_0": 4.55,
    "Q3_K_M": 3.92,
    "Q2_K": 3.18,
}
QUANTIZED = tuple(type_ for type_ in BITS if type_ != "F32")  # without an importance matrix
CONVERTED = ("F16", "BF16", "Q8_0", "F32")
OF_HEADS = ("Q8_0", "F16", "Q4_K", "Q4_0", "F32")
_AT_END = re.compile(r"(?<![a-z0-9])(b?f16|f32|i?q[1-8]_\w+)$", re.IGNORECASE)


def named(file: Path) -> str:
    """The type at the end of a file's name, where QUANT= finds it; empty: there is none."""
    found = _AT_END.search(file.stem)
    return found[1].upper() if found else ""
