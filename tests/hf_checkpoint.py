"""Writes a tiny random Llama as Hugging Face lays it out, and what it computes.

Runs where transformers, torch and sentencepiece are: `python tests/hf_checkpoint.py FOLDER TEXT
safetensors|bin [--heads N]`. What it computes goes to FOLDER.npz.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers

VOCAB, HIDDEN, NUM_TOKENS, NUM_GREEDY = 512, 256, 24, 12


def write_tokenizer(folder: Path, text: Path) -> Any:
    """A BPE with byte fallback, as Llama's."""
    model = folder / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(model.with_suffix("")),
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model.with_suffix(".vocab").unlink()
    tokenizer = transformers.LlamaTokenizer(str(model), legacy=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def model(num_heads: int) -> Any:
    """Weights that make every token count; heads as Medusa's code makes them."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.07,
    )
    made = transformers.LlamaForCausalLM(config).float().eval()
    for name, weight in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    if num_heads:
        made.medusa_head = torch.nn.ModuleList(head() for _ in range(num_heads))
    return made


class ResBlock(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Medusa's, arXiv:2401.10774, section 2.1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.nn.functional.silu(self.linear(x))


def head() -> Any:
    return torch.nn.Sequential(ResBlock(), torch.nn.Linear(HIDDEN, VOCAB, bias=False))


def computed(made: Any, tokens: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The state after the final norm, logits, the heads' log probabilities by row and head, and
    how it goes on greedily."""
    with torch.inference_mode():
        hidden = made.model(tokens[None]).last_hidden_state[0]
        found = {"tokens": tokens, "hidden": hidden, "logits": made.lm_head(hidden)}
        if heads := getattr(made, "medusa_head", None):
            logits = torch.stack([head(hidden) for head in heads], dim=1)
            found["head_log_probs"] = logits.log_softmax(-1)
        for _ in range(NUM_GREEDY):
            tokens = torch.cat([tokens, made(tokens[None]).logits[0, -1:].argmax(-1)])
    found["greedy"] = tokens[NUM_TOKENS:]
    return {name: values.numpy() for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("format", choices=["safetensors", "bin"])
    parser.add_argument("--heads", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    tokenizer = write_tokenizer(args.folder, args.text)
    made = model(args.heads)
    safe = args.format == "safetensors"
    made.save_pretrained(args.folder, max_shard_size="1MB", safe_serialization=safe)
    tokens = torch.randint(3, VOCAB, (NUM_TOKENS,))
    text = args.text.read_text()[:500]
    found = computed(made, tokens)
    ids = np.array(tokenizer.encode(text))
    found |= {"text": np.array(text), "text_ids": ids}
    np.savez(args.folder.with_suffix(".npz"), allow_pickle=False, **found)


if __name__ == "__main__":
    main()
