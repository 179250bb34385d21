"""Questions beside the batches, as vLLM's /tokenize and /detokenize put them: no slot is needed.

The rest of what the tiers say to each other is in protocol.py.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from model_server.contract.protocol import ChatOptions, Message, Text, Wire


class Tokenize(Wire):
    """`POST /tokenize`: what tokens these are as a prompt. One of prompt and messages is given."""

    prompt: Text | None = None
    messages: list[Message] | None = None
    chat: ChatOptions = ChatOptions()
    parse_special: bool = Field(False, description="Special tokens' texts in `prompt` are tokens.")
    add_special_tokens: bool = Field(True, description="Begin with BOS where the model wants it.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_prompt(self) -> Tokenize:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt, messages")
        return self


class Tokenized(Wire):
    """The answer, by the names of vLLM's."""

    count: int = Field(description="How many tokens.")
    max_model_len: int = Field(description="Prompt plus answer of one request, in tokens.")
    tokens: list[int] = Field(description="Their ids.")
    token_strs: list[str] | None = Field(None, description="As the vocabulary spells them.")


class Detokenize(Wire):
    """`POST /detokenize`: what prompt these tokens are."""

    tokens: list[int]


class Detokenized(Wire):
    """The answer, by the names of vLLM's."""

    prompt: str = Field(description="Their text.")
