"""Requests to prompt tokens: raw text, token ids, or messages through the model's chat template.

`tokenize` and `detokenize` are for clients that count before they ask; no slot is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_server import logs
from model_server.contract.protocol import ChatOptions, GenerateRequest, Infill, Message
from model_server.contract.questions import Detokenize, Detokenized, Tokenize, Tokenized
from model_server.engine import infilling
from model_server.engine.chat_template import ChatTemplate
from model_server.engine.template_source import compiled
from model_server.errors import PromptRefused, PromptTooLong, SettingError
from model_server.llama.vocab import Vocab

# FastChat's conversation "vicuna_v1.1", which v1.3 and v1.5 were trained with.
VICUNA_TEMPLATE = """\
{%- set default = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions." -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first %}{{ raise_exception('a system message must come first') }}{% endif -%}
{{- message.content -}}
{%- else -%}
{%- if loop.first %}{{ default }}{% endif -%}
{%- if message.role == 'user' -%}
{{- ('' if loop.previtem and loop.previtem.role == 'assistant' else ' ') + 'USER: ' -}}
{{- message.content -}}
{%- else -%}
{{- ' ASSISTANT: ' + message.content + eos_token -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif -%}
"""

NO_INFILL = (
    "suffix: this model has no tokens for filling gaps (fim_pre, fim_suf, fim_mid in its GGUF): "
    "serve a model for code that has them"
)
NO_TEMPLATE = (
    "this model has no chat template: use /v1/completions, or start the model server with "
    "CHAT_TEMPLATE=vicuna or CHAT_TEMPLATE=/path/to/template.jinja"
)


def choose_template(own: str | None, setting: Path | str, name: str) -> str | None:
    """The GGUF's own template if it can be read, else CHAT_TEMPLATE, else Vicuna's if the name says
    so, else the GGUF's as it is. Raises SettingError.
    """
    given = _given(setting)
    if own and _is_readable(own):
        if given is not None:
            logs.say.warning("CHAT_TEMPLATE=%s is not used: the model file has a template", setting)
        return own
    if given is not None:
        return given
    return VICUNA_TEMPLATE if "vicuna" in name.lower() else own


def _given(setting: Path | str) -> str | None:
    """What CHAT_TEMPLATE names, whether it is needed or not. Raises SettingError."""
    if not str(setting):
        return None
    if str(setting) == "vicuna":
        return VICUNA_TEMPLATE
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("CHAT_TEMPLATE", f"{setting} can't be read: {error}") from None


def _is_readable(source: str) -> bool:
    try:
        compiled(source)
    except SettingError:
        return False
    return True


class PromptEncoder:
    """Turns any of a request's three prompt forms into tokens that fit the context."""

    def __init__(self, vocab: Vocab, template: str | None, context_size: int) -> None:
        self._vocab = vocab
        self._template = None if template is None else ChatTemplate(template, vocab)
        self._context_size = context_size

    @property
    def can_chat(self) -> bool:
        """Whether messages are accepted."""
        return self._template is not None

    def encode(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens, BOS first where the model wants one. Raises RequestError."""
        if request.prompt_tokens is not None:
            self.refuse_unknown("prompt", request.prompt_tokens)
            tokens = request.prompt_tokens
        elif request.messages is not None:
            tokens = self._with_bos(self._of_messages(request.messages, request.chat))
        elif request.infill is not None:
            tokens = self._around_a_gap(request.prompt or "", request.infill, request.max_tokens)
        else:
            text = self._of_text(request.prompt or "", parse_special=request.parse_special)
            tokens = self._with_bos(text)
        if not tokens or (request.prompt == "" and request.infill is None):
            raise PromptRefused("prompt is empty: at least one token is needed", "prompt")
        num_answer = 0 if request.pooling else 1
        if len(tokens) + num_answer > self._context_size:
            field = "prompt" if request.messages is None else "messages"
            beside = ", and one of the answer must fit" if num_answer else ""
            raise PromptTooLong(self._context_size, f"{field} has {len(tokens)}{beside}", field)
        return tokens

    def max_tokens(self, request: GenerateRequest, num_prompt: int) -> int:
        """How long the answer may get: as long as is asked for, and there is room."""
        if request.pooling:
            return 1  # there is none: nothing is drafted, and room is kept for no more
        room = self._context_size - num_prompt
        return min(request.max_tokens or room, room)

    def tokenize(self, asked: Tokenize) -> Tokenized:
        """The tokens that a completion or a chat would begin with. Raises RequestError."""
        if asked.messages is not None:
            tokens = self._of_messages(asked.messages, asked.chat)
        else:
            tokens = self._of_text(asked.prompt or "", parse_special=asked.parse_special)
        if asked.add_special_tokens:
            tokens = self._with_bos(tokens)
        strings = list(map(self._vocab.spelling, tokens)) if asked.return_token_strs else None
        return Tokenized(
            count=len(tokens), max_model_len=self._context_size, tokens=tokens, token_strs=strings
        )

    def detokenize(self, asked: Detokenize) -> Detokenized:
        """Their text; what `tokenize` gave comes back as it was. Raises PromptRefused."""
        self.refuse_unknown("tokens", asked.tokens)
        return Detokenized(prompt=self._vocab.detokenize(asked.tokens))

    def refuse_unknown(self, field: str, tokens: Sequence[int]) -> None:
        """Raises PromptRefused for the first that is no token of this model."""
        for token in tokens:
            if not 0 <= token < self._vocab.size:
                problem = f"{field} has token {token}, must be 0 to {self._vocab.size - 1}"
                raise PromptRefused(problem, field)

    def _of_text(self, prompt: str, *, parse_special: bool) -> list[int]:
        """Tokens of a text without BOS; with `parse_special` texts of special tokens are these.

        Raises PromptTooLong where they can't fit.
        """
        self._refuse_bytes("prompt", prompt)
        return self._vocab.tokenize(prompt, special=parse_special)

    def _around_a_gap(self, prompt: str, infill: Infill, max_tokens: int | None) -> list[int]:
        """Tokens around a gap, for models that know how to fill one. Raises RequestError."""
        if not self._vocab.infill:
            raise PromptRefused(NO_INFILL, "suffix")
        if not infill.trims:
            self._refuse_bytes("prompt", prompt, infill.suffix)
        room = self._context_size - min(max_tokens or self._context_size, self._context_size // 2)
        trimmed = room - 1 if infill.trims else None
        return self._with_bos(infilling.tokens(self._vocab, prompt, infill, trimmed))

    def _of_messages(self, messages: Sequence[Message], options: ChatOptions) -> list[int]:
        """Tokens of a chat as its template writes them. Raises RequestError."""
        if self._template is None:
            raise PromptRefused(NO_TEMPLATE, "messages")
        if not messages:
            raise PromptRefused("messages is empty: at least one message is needed", "messages")
        texts = [message.content for message in messages]
        texts += [message.reasoning_content or "" for message in messages]
        self._refuse_bytes("messages", *texts)
        return self._template.tokenize(messages, options)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        """The same tokens with BOS first, where the model wants one and none is there."""
        bos = self._vocab.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _refuse_bytes(self, field: str, *texts: str) -> None:
        """Refuse before tokenizing what can't fit: tokenizing 10 MB takes seconds."""
        num_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        limit = self._context_size * self._vocab.longest_piece_bytes
        if num_bytes > limit:
            problem = f"{field} has {num_bytes} bytes, of which at most {limit} can fit"
            raise PromptTooLong(self._context_size, problem, field)
