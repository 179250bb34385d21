"""A model's chat template: messages to text as its authors meant it, and to tokens.

Text that users write never becomes a special token, nor does the template see it changed: texts of
special tokens inside messages are marked before the template runs, and the marks are taken out
behind it. How a template wants its messages is found out when it is loaded, by rendering a sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import dropwhile, product
from typing import Any

import jinja2

from model_server.contract.protocol import ChatOptions, Message
from model_server.engine.template_source import LABEL, compiled
from model_server.errors import PromptRefused
from model_server.llama.vocab import Vocab

_SPACE = " \t\n\r\v\f"  # C's, which llama.cpp means
_PRIVATE_USE = range(0xE000, ord(LABEL))
_SAMPLE = (("system", "first"), ("user", "second"), ("assistant", "third"), ("user", "fourth"))

# Variables that some templates know by another name.
_OTHER_NAMES = {"enable_thinking": "thinking", "reasoning_effort": "reasoning_strength"}

Change = Callable[[str], str]


@dataclass(frozen=True)
class Form:
    """How a template wants what it is given: content as a list of parts, the system's words as a
    user's or in one message, and that there are no tools as `transformers` says it, or as
    llama.cpp's server does.
    """

    no_tools_is_none: bool = True
    merge_system: bool = False
    parts: bool = False
    join_systems: bool = False

    @property
    def variables(self) -> dict[str, Any]:
        return {"tools": None, "documents": None} if self.no_tools_is_none else {"functions": ""}


class ChatTemplate:
    """A Jinja chat template of one model."""

    def __init__(self, source: str, vocab: Vocab) -> None:
        """Raises SettingError when the template has a syntax error."""
        self._source = source
        self._template = compiled(source)
        self._vocab = vocab
        by_length = sorted(vocab.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
        self._spaced = re.compile(rf"\s*(?:{self._special.pattern})")
        self._form = self._find_form()

    def render(self, messages: Sequence[Message], options: ChatOptions | None = None) -> str:
        """The conversation's text. Raises PromptRefused."""
        return self._rendered(messages, options or ChatOptions())[0]

    def tokenize(
        self, messages: Sequence[Message], options: ChatOptions | None = None
    ) -> list[int]:
        """Tokens of the conversation without BOS. Raises PromptRefused."""
        text, mark = self._rendered(messages, options or ChatOptions(), guarded=True)
        tokens: list[int] = []
        at = 0
        for found in self._special.finditer(text):
            token = self._vocab.special_texts[found.group()]
            tokens += [*self._vocab.tokenize(text[at : found.start()].replace(mark, "")), token]
            at = found.end()
            if token in self._vocab.stripping:
                at = len(text) - len(text[at:].lstrip(_SPACE))
        return tokens + self._vocab.tokenize(text[at:].replace(mark, ""))

    @cached_property
    def _labelled(self) -> jinja2.Template:
        return compiled(self._source, self._special)

    def _rendered(
        self, messages: Sequence[Message], options: ChatOptions, *, guarded: bool = False
    ) -> tuple[str, str]:
        """The text, and the mark that breaks users' texts of special tokens in it if `guarded`."""
        texts = [*_texts(messages), *_strings(options.variables)]
        mark, end = _unused_chars(texts)
        if self._form.join_systems or self._form.merge_system:
            messages = _joined(messages)
        if self._form.merge_system:
            messages = _merged(messages)
        chat = _Chat(self, messages, options, end)
        if not guarded or not any(map(self._special.search, texts)):
            return chat.text(str), mark
        marked = None if any(LABEL in text for text in texts) else self._marked(chat, mark)
        if marked is None:
            marked = chat.text(
                lambda text: self._special.sub(lambda found: _break(found.group(), mark), text)
            )
        return marked, mark

    def _marked(self, chat: _Chat, mark: str) -> str | None:
        """With marks in users' special texts, and otherwise as the template writes it, also where
        it splits at such texts; None where it notices the marks.
        """

        def in_front(text: str) -> str:  # of the space, which may be stripped when text was split
            return self._spaced.sub(lambda found: mark + found.group(), text)

        def settled(found: re.Match[str]) -> str:
            return found.group(1) + _break(found.group(2), mark)

        try:
            plain, text = chat.text(str), chat.text(in_front, self._labelled)
        except PromptRefused:
            return None
        if text.replace(mark, "").replace(LABEL, "") != plain:
            return None
        text = re.sub(rf"{mark}(\s*)({self._special.pattern})", settled, text)
        return text.replace(LABEL, "")

    def variables(self, options: ChatOptions, change: Change) -> dict[str, Any]:
        """What a template is told beside messages."""
        now = datetime.now()
        variables = _changed(options.variables, change)
        return {
            **self._form.variables,
            "date_string": now.strftime("%d %b %Y"),  # as llama.cpp's server has both
            "datetime": now.strftime("%b %d %Y"),
            **{_OTHER_NAMES[name]: variables[name] for name in variables if name in _OTHER_NAMES},
            **variables,
            "add_generation_prompt": options.add_generation_prompt,
            "bos_token": self._vocab.bos_text,
            "eos_token": self._vocab.eos_text,
        }

    def execute(self, values: dict[str, Any], template: jinja2.Template | None) -> str:
        """The template itself, or one that stands in for it. Raises PromptRefused."""
        try:
            return (template or self._template).render(**values)
        except jinja2.TemplateError as error:
            problem = f"messages: the chat template refuses them: {error.message}"
            raise PromptRefused(problem, "messages") from None
        except Exception as error:  # what else may fail is up to the template
            problem = f"messages: the chat template fails on them: {error}"
            raise PromptRefused(problem, "messages") from None

    def turn(self, message: Message, change: Change) -> dict[str, Any]:
        """A message as the template sees it."""
        content = change(message.content)
        turn: dict[str, Any] = {
            "role": message.role,
            "content": [{"type": "text", "text": content}] if self._form.parts else content,
        }
        if message.reasoning_content is not None:
            turn["reasoning_content"] = change(message.reasoning_content)
        return turn

    def _find_form(self) -> Form:
        """The first form in which nothing that anybody says is lost."""
        sample = [Message.model_validate({"role": r, "content": c}) for r, c in _SAMPLE]
        for choices in product((True, False), (False, True), (False, True)):
            self._form = Form(*choices)
            if self._keeps(sample):
                several = [sample[0].model_copy(update={"content": "zeroth"}), *sample]
                return replace(self._form, join_systems=not self._keeps(several))
        return Form()

    def _keeps(self, sample: Sequence[Message]) -> bool:
        try:
            text = self.render(sample)
        except PromptRefused:
            return False
        return all(each.content in text for each in sample) and "'text'" not in text


@dataclass(frozen=True)
class _Chat:
    """One conversation, to be rendered in several ways."""

    template: ChatTemplate
    messages: Sequence[Message]
    options: ChatOptions
    end: str

    def text(self, change: Change, template: jinja2.Template | None = None) -> str:
        """With the users' texts changed. Raises PromptRefused."""
        *earlier, last = [self.template.turn(each, change) for each in self.messages]
        values = self.template.variables(self.options, change)
        if not self.options.continue_final_message:
            return self.template.execute({**values, "messages": [*earlier, last]}, template)
        ending = self.template.turn(self.messages[-1], lambda text: change(text) + self.end)
        values |= {"messages": [*earlier, ending]}
        before, found, _ = self.template.execute(values, template).rpartition(self.end)
        if found:
            return before
        # The template has no place for what may follow: then behind a turn that it begins.
        values |= {"messages": earlier, "add_generation_prompt": True}
        return self.template.execute(values, template) + change(self.messages[-1].content)


def _joined(messages: Sequence[Message]) -> Sequence[Message]:
    """What the system says at first, in one message: some frameworks send it in several."""
    others = list(dropwhile(lambda message: message.role == "system", messages))
    systems = messages[: len(messages) - len(others)]
    if len(systems) < 2:
        return messages
    content = "\n\n".join(message.content for message in systems)
    return [Message(role="system", content=content), *others]


def _merged(messages: Sequence[Message]) -> Sequence[Message]:
    """The system's first words at the beginning of the user's, or as the user's."""
    first, *others = messages
    if first.role != "system":
        return messages
    if not others or others[0].role != "user":
        return [first.model_copy(update={"role": "user"}), *others]
    both = f"{first.content}\n{others[0].content}"
    return [others[0].model_copy(update={"content": both}), *others[1:]]


def _texts(messages: Sequence[Message]) -> list[str]:
    said = [message.content for message in messages]
    return said + [m.reasoning_content for m in messages if m.reasoning_content is not None]


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, str):
        yield value


def _changed(value: Any, change: Change) -> Any:
    """A JSON value with all its texts changed."""
    if isinstance(value, dict):
        return {name: _changed(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _break(special: str, mark: str) -> str:
    return special[0] + mark + special[1:]


def _unused_chars(texts: Sequence[str]) -> tuple[str, str]:
    used = set().union(*texts)
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    try:
        return next(free), next(free)
    except StopIteration:
        problem = "messages use every private character of Unicode"
        raise PromptRefused(problem, "messages") from None
