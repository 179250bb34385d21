"""What tokens a prompt is, and what prompt tokens are: for clients that count before they ask."""

from __future__ import annotations

from dataclasses import dataclass

from model_server.contract.questions import Detokenize, Detokenized, Tokenize, Tokenized
from model_server.engine.prompt import PromptEncoder
from model_server.errors import PromptRefused
from model_server.llama.vocab import Vocab


@dataclass(frozen=True)
class Tokenizer:
    """One model's vocabulary and prompts, for any thread but the engine's."""

    vocab: Vocab
    prompts: PromptEncoder
    context_size: int

    def tokenize(self, asked: Tokenize) -> Tokenized:
        """The tokens that a completion or a chat would begin with. Raises PromptRefused."""
        if asked.messages is not None:
            tokens = self.prompts.of_messages(asked.messages, asked.chat)
        else:
            tokens = self.prompts.of_text(asked.prompt or "", parse_special=asked.parse_special)
        if asked.add_special_tokens:
            tokens = self.prompts.with_bos(tokens)
        strings = map(self.vocab.spelling, tokens) if asked.return_token_strs else None
        return Tokenized(
            count=len(tokens),
            max_model_len=self.context_size,
            tokens=tokens,
            token_strs=strings and list(strings),
        )

    def detokenize(self, asked: Detokenize) -> Detokenized:
        """Their text; what `tokenize` gave comes back as it was. Raises PromptRefused."""
        for token in asked.tokens:
            if not 0 <= token < self.vocab.size:
                problem = f"tokens has token {token}, must be 0 to {self.vocab.size - 1}"
                raise PromptRefused(problem, "tokens")
        return Detokenized(prompt=self.vocab.detokenize(asked.tokens))
