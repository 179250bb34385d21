"""The small model that was trained for the tests, and its Medusa heads; both Q8_0."""

from pathlib import Path

STDLIB = Path(__file__).with_name("stdlib-q8_0.gguf")
STDLIB_HEADS = Path(__file__).with_name("stdlib-heads-q8_0.gguf")
