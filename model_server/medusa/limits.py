"""How large the heads of a file may be: its format's limits, known before a file is opened."""

from __future__ import annotations

MAX_HEADS, MAX_BLOCKS = 16, 8
