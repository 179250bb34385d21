"""What models of known shapes take, as README says it: `python -m tests.structure.memory`."""

from __future__ import annotations

from dataclasses import dataclass

from model_server.tools.weight_types import BITS

SHOWN = ("Q4_0", "Q8_0", "F16")
POOL_TOKENS = 2 * 2_048  # KV_CACHE_TOKENS where the context is that long
HEADS = 5


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes. `num_kv_heads`: those of its attention that keys and values have."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    num_heads: int
    num_kv_heads: int
    vocab: int = 32_000

    @property
    def kv_size(self) -> int:
        return self.hidden // self.num_heads * self.num_kv_heads

    @property
    def num_weights(self) -> int:
        attention = 2 * self.hidden * (self.hidden + self.kv_size)
        layer = attention + 3 * self.hidden * self.feed_forward
        return self.layers * layer + 2 * self.vocab * self.hidden

    def file_gb(self, type_: str) -> float:
        return self.num_weights * BITS[type_] / 8e9

    @property
    def pool_gb(self) -> float:
        """Keys and values in F16."""
        return POOL_TOKENS * self.layers * 2 * self.kv_size * 2 / 1e9

    @property
    def heads_gb(self) -> float:
        """A residual block and a vocabulary matrix each, Q8_0."""
        weights = HEADS * self.hidden * (self.hidden + self.vocab)
        return weights * BITS["Q8_0"] / 8e9


SHAPES = (
    Shape("1.1B (TinyLlama)", 22, 2_048, 5_632, 32, 4),
    Shape("7B (Vicuna)", 32, 4_096, 11_008, 32, 32),
    Shape("13B (Vicuna)", 40, 5_120, 13_824, 40, 40),
)


def table() -> str:
    columns = ["parameters", *SHOWN, "KV pool", "five heads, Q8_0"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for shape in SHAPES:
        sizes = [*map(shape.file_gb, SHOWN), shape.pool_gb, shape.heads_gb]
        lines.append(f"| {shape.name} | " + " | ".join(f"{size:.1f} GB" for size in sizes) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
