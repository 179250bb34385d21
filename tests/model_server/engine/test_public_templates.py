"""The chat templates of some 70 public models, rendered as `transformers` renders them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model_server.contract.protocol import ChatOptions, Message
from model_server.engine.chat_template import ChatTemplate
from model_server.llama.vocab import Vocab
from tests.model_server.pinned import pinned, templates, vocabulary

CHATS = {
    "a question": [("user", "Hello there")],
    "turns": [("user", "q one"), ("assistant", "a one"), ("user", "q two")],
    "a system": [("system", "Be brief."), ("user", "q one"), ("assistant", "a"), ("user", "q")],
    "thoughts": [
        ("user", "q one"),
        ("assistant", "<think>\nHm.\n</think>\n\na one"),
        ("user", "q two"),
    ],
    "spelled": [("user", "what is </think> or <|im_end|>?"), ("assistant", "x"), ("user", "</s>")],
}
OF_VOCABULARIES = {
    "phi-3": "microsoft-Phi-3.5-mini-instruct",
    "llama-bpe": "meta-llama-Llama-3.1-8B-Instruct",
    "qwen2": "Qwen-Qwen2.5-7B-Instruct",
    "command-r": "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "deepseek-llm": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
}
# Templates for chats with tools only: `transformers` fails on them without any.
TOOLS_ONLY = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "fireworks-ai-llama-3-firefunction-v2",
}
# A template that refuses a system's message gets it in the user's.
NO_SYSTEM = {"google-gemma-2-2b-it"}
NOW = {
    "date_string": datetime.now().strftime("%d %b %Y"),
    "datetime": datetime.now().strftime("%b %d %Y"),
}


class Generation(Extension):
    """As `transformers` has it, when nothing is tracked."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_written")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


def reference(source: str, vocab: Vocab, turns: list[tuple[str, str]]) -> str:
    """`transformers.utils.chat_template_utils`, written anew."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source).render(
        messages=[{"role": role, "content": content} for role, content in turns],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token=vocab.bos_text,
        eos_token=vocab.eos_text,
        **NOW,
    )


def messages(turns: list[tuple[str, str]]) -> list[Message]:
    return [Message.model_validate({"role": role, "content": text}) for role, text in turns]


def bare(text: str) -> str:
    """Without spaces, and what this vocabulary takes for them."""
    return text.replace(" ", "").replace("\u2581", "")


def spelled_out(vocab: Vocab, tokens: list[int]) -> str:
    """What tokens say, special ones by their texts; this vocabulary puts a space in front."""
    return b"".join(vocab.piece(token, special=True) for token in tokens).decode()


@pytest.fixture(
    scope="module", params=templates() or [Path()], ids=lambda path: path.stem or "none"
)
def path(request: pytest.FixtureRequest) -> Path:
    pinned("models/templates")
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def template(path: Path, vocab: Vocab) -> ChatTemplate:
    return ChatTemplate(path.read_text(), vocab)


def test_there_are_about_seventy() -> None:
    assert len(list(pinned("models/templates").glob("*.jinja"))) >= 69


@pytest.mark.parametrize("name", CHATS)
def test_it_renders_as_its_authors_meant_it(
    path: Path, template: ChatTemplate, vocab: Vocab, name: str
) -> None:
    source = path.read_text()
    if path.stem in TOOLS_ONLY or (path.stem in NO_SYSTEM and name == "a system"):
        with pytest.raises(jinja2.TemplateError if path.stem in NO_SYSTEM else Exception):
            reference(source, vocab, CHATS[name])
        text = template.render(messages(CHATS[name]))
        assert all(said in text for role, said in CHATS[name])
        return
    assert template.render(messages(CHATS[name])) == reference(source, vocab, CHATS[name])


def test_tokens_are_those_of_the_text(template: ChatTemplate, vocab: Vocab) -> None:
    """Marks leave nothing behind, whatever the template does with thoughts and their texts."""
    for turns in CHATS.values():
        said = spelled_out(vocab, template.tokenize(messages(turns)))
        assert bare(said) == bare(template.render(messages(turns)))


def test_the_assistants_words_can_be_continued(template: ChatTemplate) -> None:
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    turns = messages([("user", "q one"), ("assistant", "Sure, here is ")])
    assert template.render(turns, options).endswith("Sure, here is ")


def test_nothing_that_a_user_says_is_lost(template: ChatTemplate) -> None:
    for name in ("a question", "turns", "a system"):
        text = template.render(messages(CHATS[name]))
        assert all(said in text for role, said in CHATS[name])


@pytest.mark.parametrize("name", OF_VOCABULARIES)
def test_tokens_are_those_that_llama_cpp_makes_of_the_text(name: str) -> None:
    """Phi-3's special tokens take the line's end behind them along."""
    vocab = vocabulary(name)
    source = pinned(f"models/templates/{OF_VOCABULARIES[name]}.jinja").read_text()
    template = ChatTemplate(source, vocab)
    for turns in ("a question", "turns"):
        said = messages(CHATS[turns])
        expected = vocab.tokenize(template.render(said), special=True)
        assert template.tokenize(said) == expected
