"""Requests to prompt tokens: raw text, token ids, or messages through the model's chat template.

Text that users write never becomes a special token, in chats neither: special texts inside their
messages are broken by a mark before the template runs, and the mark is taken out behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model_server.errors import PromptRefused, PromptTooLong, SettingError
from model_server.llama.vocab import Vocab
from model_server.protocol import GenerateRequest, Message

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

NO_TEMPLATE = (
    "this model has no chat template: use /v1/completions, or start the model server with "
    "CHAT_TEMPLATE=vicuna or CHAT_TEMPLATE=/path/to/template.jinja"
)

_PRIVATE_USE = range(0xE000, 0xF900)


def choose_template(own: str | None, setting: Path | str, name: str) -> str | None:
    """The GGUF's own template, else CHAT_TEMPLATE, else Vicuna's if the name says so."""
    if own:
        return own
    if str(setting) == "vicuna" or (not str(setting) and "vicuna" in name.lower()):
        return VICUNA_TEMPLATE
    if not str(setting):
        return None
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("CHAT_TEMPLATE", f"{setting} can't be read: {error}") from None


class ChatTemplate:
    """A Jinja chat template, sandboxed, rendered to tokens."""

    def __init__(self, source: str, vocab: Vocab) -> None:
        """Raises SettingError when the template has a syntax error."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise SettingError("CHAT_TEMPLATE", f"line {error.lineno}: {error.message}") from None
        self._vocab = vocab
        by_length = sorted(vocab.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the conversation, ending where the assistant speaks next, without BOS."""
        mark = _unused_char("".join(m.content for m in messages))
        text = self._render(messages, mark)
        tokens: list[int] = []
        at = 0
        for found in self._special.finditer(text):
            tokens += self._plain(text[at : found.start()], mark)
            tokens.append(self._vocab.special_texts[found.group()])
            at = found.end()
        return tokens + self._plain(text[at:], mark)

    def _render(self, messages: Sequence[Message], mark: str) -> str:
        def guard(content: str) -> str:
            return self._special.sub(lambda m: m.group()[0] + mark + m.group()[1:], content)

        turns = [{"role": m.role, "content": guard(m.content)} for m in messages]
        values: dict[str, Any] = {
            "messages": turns,
            "add_generation_prompt": True,
            "bos_token": self._vocab.bos_text,
            "eos_token": self._vocab.eos_text,
        }
        try:
            return self._template.render(**values)
        except jinja2.TemplateError as error:
            problem = f"messages: the chat template refuses them: {error.message}"
            raise PromptRefused(problem, "messages") from None
        except Exception as error:  # what else may fail is up to the template
            problem = f"messages: the chat template fails on them: {error}"
            raise PromptRefused(problem, "messages") from None

    def _plain(self, text: str, mark: str) -> list[int]:
        return self._vocab.tokenize(text.replace(mark, "")) if text else []


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
            tokens = self._checked(request.prompt_tokens)
        elif request.messages is not None:
            tokens = self.with_bos(self.of_messages(request.messages))
        else:
            tokens = self.with_bos(self.of_text(request.prompt or ""))
        if not tokens or request.prompt == "":
            raise PromptRefused("prompt is empty: at least one token is needed", "prompt")
        self._refuse_tokens(len(tokens), request.max_tokens)
        return tokens

    def max_tokens(self, request: GenerateRequest, num_prompt: int) -> int:
        """How long the answer may get."""
        return request.max_tokens or self._context_size - num_prompt

    def of_text(self, prompt: str) -> list[int]:
        """Tokens of a text without BOS. Raises PromptRefused where they can't fit."""
        self._refuse_bytes("prompt", prompt)
        return self._vocab.tokenize(prompt)

    def of_messages(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat as its template writes them. Raises PromptRefused."""
        if self._template is None:
            raise PromptRefused(NO_TEMPLATE, "messages")
        if not messages:
            raise PromptRefused("messages is empty: at least one message is needed", "messages")
        self._refuse_bytes("messages", *(message.content for message in messages))
        return self._template.tokenize(messages)

    def _checked(self, tokens: list[int]) -> list[int]:
        for token in tokens:
            if not 0 <= token < self._vocab.size:
                raise PromptRefused(
                    f"prompt has token {token}, must be 0 to {self._vocab.size - 1}", "prompt"
                )
        return tokens

    def with_bos(self, tokens: list[int]) -> list[int]:
        """The same tokens with BOS first, where the model wants one and none is there."""
        bos = self._vocab.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _refuse_bytes(self, field: str, *texts: str) -> None:
        """Refuse before tokenizing what can't fit: tokenizing 10 MB takes seconds."""
        num_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        limit = self._context_size * self._vocab.longest_piece_bytes
        if num_bytes > limit:
            raise PromptRefused(
                f"{field} has {num_bytes} bytes, at most {limit} can fit the context of "
                f"{self._context_size} tokens",
                field,
            )

    def _refuse_tokens(self, num_prompt: int, max_tokens: int | None) -> None:
        if num_prompt + (max_tokens or 1) > self._context_size:
            raise PromptTooLong(num_prompt, max_tokens, self._context_size)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _unused_char(text: str) -> str:
    used = set(text)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise PromptRefused("messages use every private character of Unicode", "messages")
