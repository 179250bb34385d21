"""The torch model: a Llama-architecture decoder whose tensors have GGUF's own order.

Rotary embedding turns interleaved pairs, as llama.cpp's `llama` architecture does, so that
no weight is permuted on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MATRIX_STD = 0.03


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. Widths are multiples of 256, the block size of the K-quants."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 4
    head_dim: int = 64
    feed_forward: int = 768
    context: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim


def rotary_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, each [context, head_dim / 2]."""
    exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.outer(torch.arange(shape.context), shape.rope_base**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of the last dimension; x is [batch, heads, time, dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.v = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.output = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.shape.heads, self.shape.head_dim)
        q, k, v = (linear(x).view(heads).transpose(1, 2) for linear in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return output


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.attn = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.ffn = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.output = nn.Linear(shape.hidden, shape.vocab, bias=False)
        cos, sin = rotary_table(shape)
        self.cos = nn.Buffer(cos, persistent=False)
        self.sin = nn.Buffer(sin, persistent=False)
        self.initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocab] of tokens [batch, time]."""
        x = self.token_embd(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.output(self.output_norm(x))
        return logits

    def loss(self, window: Tensor) -> Tensor:
        """Mean cross entropy, in nats, of each token after the first of its window."""
        logits = self(window[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    def initialise(self) -> None:
        """Each layer starts as the identity, the output as uniform."""
        for name, weight in self.named_parameters():
            if name.endswith(("attn.output.weight", "down.weight")) or name == "output.weight":
                nn.init.zeros_(weight)
            elif name == "token_embd.weight":
                nn.init.normal_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=MATRIX_STD)
