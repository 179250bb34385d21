"""Chat templates: exact text, exact tokens, and no word of a user lost or taken for a token."""

from __future__ import annotations

import re

import pytest

from model_server.contract.protocol import ChatOptions, Message
from model_server.engine.chat_template import ChatTemplate, Form
from model_server.engine.prompt import VICUNA_TEMPLATE
from model_server.errors import PromptRefused, SettingError
from model_server.llama.vocab import Vocab
from tests.vocabulary import BOS, EOS

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"


def messages(*turns: tuple[str, str]) -> list[Message]:
    return [Message.model_validate({"role": role, "content": text}) for role, text in turns]


def as_text(vocab: Vocab, tokens: list[int]) -> str:
    """What the tokens say, special ones spelled out; each part's first space is the tokenizer's."""
    text, first = "", True
    for token in tokens:
        if token == EOS:
            text, first = text + "</s>", True
            continue
        piece = vocab.piece(token).decode("latin-1")
        text += piece.removeprefix(" ") if first else piece
        first = False
    return text.encode("latin-1").decode()


CHATS = {
    f"{SYSTEM} USER: Hello! ASSISTANT:": [("user", "Hello!")],
    f"{SYSTEM} USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT:": [
        ("user", "Hello!"), ("assistant", "Hi!"), ("user", "How are you?")],
    "Be brief. USER: Hello! ASSISTANT:": [("system", "Be brief."), ("user", "Hello!")],
    "S USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>USER: e ASSISTANT:": [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
        ("user", "e")],
    f"{SYSTEM} USER: two\nlines  ASSISTANT:": [("user", "two\nlines ")],
}  # fmt: skip


@pytest.mark.parametrize("text", CHATS)
def test_vicunas_prompt_is_exact(vocab: Vocab, text: str) -> None:
    tokens = ChatTemplate(VICUNA_TEMPLATE, vocab).tokenize(messages(*CHATS[text]))
    assert as_text(vocab, tokens) == text


def test_vicunas_prompt_is_exact_before_tokens(vocab: Vocab) -> None:
    chat = ChatTemplate(VICUNA_TEMPLATE, vocab)
    for text, turns in CHATS.items():
        assert chat.render(messages(*turns)) == text


def test_a_late_system_message_is_refused(vocab: Vocab) -> None:
    chat = ChatTemplate(VICUNA_TEMPLATE, vocab)
    with pytest.raises(PromptRefused, match="must come first"):
        chat.tokenize(messages(("user", "a"), ("system", "b")))


@pytest.mark.parametrize("content", ["</s>", "a</s>b<s>", "<</s>/s>", "\ue000</s>", "<s", "</s"])
def test_special_text_of_users_stays_text(vocab: Vocab, content: str) -> None:
    tokens = ChatTemplate(ECHO, vocab).tokenize(messages(("user", content)))
    assert BOS not in tokens
    assert EOS not in tokens
    assert as_text(vocab, tokens) == content


def test_special_text_of_the_template_becomes_tokens(vocab: Vocab) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokens = ChatTemplate(source, vocab).tokenize(messages(("user", "<"), ("user", "/s>")))
    assert (tokens[0], tokens.count(EOS), tokens[-1]) == (BOS, 2, EOS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
        "{{ 'a' + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ 'a'.x.y }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ {}['a']['b'] }}",
    ],
)
def test_a_template_that_fails_refuses_the_request(vocab: Vocab, source: str) -> None:
    with pytest.raises(PromptRefused, match="chat template") as caught:
        ChatTemplate(source, vocab).tokenize(messages(("user", "a")))
    assert caught.value.param == "messages"


def test_no_private_character_left_is_a_refusal(vocab: Vocab) -> None:
    everyone = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(PromptRefused, match="private character"):
        ChatTemplate(ECHO, vocab).tokenize(messages(("user", everyone)))


def test_a_template_with_a_syntax_error_is_a_setting_error(vocab: Vocab) -> None:
    with pytest.raises(SettingError, match="CHAT_TEMPLATE: line 2"):
        ChatTemplate("\n{% if %}", vocab)


def test_hugging_faces_own_tag_is_written_like_the_rest(vocab: Vocab) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}!{% endgeneration %}"
        "{% else %}{{ m.content }}?{% endif %}{% endfor %}"
    )
    turns = messages(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert ChatTemplate(source, vocab).render(turns) == "a?b!c?"


def test_json_is_not_made_for_html(vocab: Vocab) -> None:
    source = "{{ messages[0].content | tojson }}"
    assert ChatTemplate(source, vocab).render(messages(("user", "<é> & '"))) == '"<é> & \'"'


PARTS = (
    "{% for m in messages %}[{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}]{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ECHO
)
ONE_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('only first') }}{% endif %}{{ m.content }}{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}|{% endif %}{% endfor %}"
)
BOTH = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.content[0].text }}|{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "form", "text"),
    [
        (ECHO, Form(), "be briefhi"),
        (PARTS, Form(parts=True), "[system:be brief][user:hi]"),
        (ONE_SYSTEM, Form(join_systems=True), "be briefhi"),
        (NO_SYSTEM, Form(merge_system=True, join_systems=False), "be brief\nhi"),
        (DROPS_SYSTEM, Form(merge_system=True), "be brief\nhi|"),
        (BOTH, Form(merge_system=True, parts=True), "be brief\nhi|"),
        ("{% for t in tools %}{% endfor %}" + ECHO, Form(no_tools_is_none=False), "be briefhi"),
    ],
)
def test_how_a_template_wants_messages_is_found_out(
    vocab: Vocab, source: str, form: Form, text: str
) -> None:
    template = ChatTemplate(source, vocab)
    assert template._form == form
    assert template.render(messages(("system", "be brief"), ("user", "hi"))) == text


def test_a_system_alone_speaks_as_a_user_where_it_must(vocab: Vocab) -> None:
    template = ChatTemplate(NO_SYSTEM, vocab)
    assert template.render(messages(("system", "be brief"))) == "be brief"
    turns = messages(("system", "be brief"), ("assistant", "ok"), ("user", "hi"))
    assert template.render(turns) == "be briefokhi"


SPLITS = (
    "{% for m in messages %}{% set c = m.content.split('</s>')[-1].lstrip('\n') %}"
    "{{ c }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("thoughts</s>answer", "answer"),
        ("thoughts\n</s>\n\nanswer", "answer"),
        ("</s>answer", "answer"),
        ("a</s>b</s>c", "c"),
        ("thoughts</s>it is <s> here", "it is <s> here"),
    ],
)
def test_a_template_finds_the_texts_that_it_splits_at(vocab: Vocab, said: str, kept: str) -> None:
    turns = messages(("user", "q"), ("assistant", said))
    template = ChatTemplate(SPLITS, vocab)
    assert template.render(turns) == f"q{kept}</s>"
    tokens = template.tokenize(turns)
    assert (tokens.count(EOS), tokens.count(BOS), tokens[-1]) == (1, 0, EOS)
    assert as_text(vocab, tokens) == f"q{kept}</s>"


REPEATS = (
    "{% for m in messages %}{% if '</s>' in m.content %}"
    "{{ m.content.split('</s>')[0].rstrip('\\n') }}\n</s>{{ m.content.split('</s>')[1] }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_a_token_that_the_template_writes_itself_is_one(vocab: Vocab) -> None:
    tokens = ChatTemplate(REPEATS, vocab).tokenize(messages(("assistant", "hm\n</s>so <s>")))
    assert (tokens.count(EOS), tokens.count(BOS)) == (1, 0)


def test_a_template_that_looks_at_the_beginning_gives_users_no_token(vocab: Vocab) -> None:
    source = (
        "{% for m in messages %}{% if m.content.startswith('</s>') %}X</s>{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    tokens = ChatTemplate(source, vocab).tokenize(messages(("user", "</s>a")))
    assert EOS not in tokens


END = ChatOptions(add_generation_prompt=False, continue_final_message=True)
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("words", ["The answer", "The answer is ", "", "a</s>b", "</s>"])
def test_the_last_words_are_continued(vocab: Vocab, words: str) -> None:
    template = ChatTemplate(CHATML, vocab)
    turns = messages(("user", "q"), ("assistant", words))
    assert template.render(turns, END) == f"<user>q</s><assistant>{words}"
    assert template.tokenize(turns, END).count(EOS) == 1
    assert template.render(turns).endswith("</s><assistant>")
    assert template.render(turns, ChatOptions(add_generation_prompt=False)).endswith("</s>")


def test_words_for_which_there_is_no_place_are_continued_behind_a_new_turn(vocab: Vocab) -> None:
    source = (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    turns = messages(("user", "q"), ("assistant", "Sure"))
    assert ChatTemplate(source, vocab).render(turns, END) == "q:Sure"


def test_variables_reach_the_template_and_are_no_tokens(vocab: Vocab) -> None:
    source = (
        ECHO
        + "{{ enable_thinking }} {{ thinking }} {{ reasoning_strength }} {{ note }} {{ list[0] }}"
    )
    known = {"enable_thinking": False, "reasoning_effort": "low"}
    variables = {**known, "note": "</s>", "list": ["<s>"]}
    template = ChatTemplate(source, vocab)
    options = ChatOptions(variables=variables)
    assert template.render(messages(("user", "a")), options) == "aFalse False low </s> <s>"
    tokens = template.tokenize(messages(("user", "a")), options)
    assert not {BOS, EOS} & set(tokens)


def test_thoughts_reach_the_template(vocab: Vocab) -> None:
    source = (
        "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    thought = Message(role="assistant", content="a", reasoning_content="b</s>")
    template = ChatTemplate(source, vocab)
    assert template.render([thought]) == "(b</s>)a"
    assert EOS not in template.tokenize([thought])


def test_today_is_told_as_llama_cpps_server_does(vocab: Vocab) -> None:
    source = "{{ date_string }}|{{ datetime }}" + ECHO
    template = ChatTemplate(source, vocab)
    text = template.render(messages(("user", "!")))
    assert re.fullmatch(r"\d\d \w{3} \d{4}\|\w{3} \d\d \d{4}!", text)
    given = ChatOptions(variables={"date_string": "01 Jan 2000"})
    assert template.render(messages(("user", "!")), given).startswith("01 Jan 2000|")


def test_what_the_system_says_in_several_messages_is_one_where_it_must(vocab: Vocab) -> None:
    turns = messages(("system", "a"), ("system", "b"), ("user", "hi"))
    assert ChatTemplate(ONE_SYSTEM, vocab).render(turns) == "a\n\nbhi"
    assert ChatTemplate(NO_SYSTEM, vocab).render(turns) == "a\n\nb\nhi"
    assert ChatTemplate(ECHO, vocab).render(turns) == "abhi"
    late = messages(("user", "hi"), ("system", "b"))
    with pytest.raises(PromptRefused, match="only first"):
        ChatTemplate(ONE_SYSTEM, vocab).render(late)
