from __future__ import annotations

from typing import Any

import pytest

from model_server.contract.protocol import GenerateRequest
from model_server.engine.intake import Intake
from model_server.engine.prompt import PromptEncoder
from model_server.errors import GrammarRefused, PromptRefused, RequestError
from model_server.guide.compiler import Compiler
from model_server.llama.vocab import Vocab
from tests import twin, vocabulary
from tests.model_server.sequences import take
from tests.vocabulary import BOS, EOS

PROMPT = twin.prompt(10)


@pytest.fixture
def intake(vocab: Vocab, compiler: Compiler) -> Intake:
    return Intake(vocab, PromptEncoder(vocab, "{{ messages[0].content }}", 128), compiler)


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"id": "a", **({} if "messages" in fields else {"prompt_tokens": PROMPT}), **fields}
    )


def test_a_request_becomes_a_sequence(intake: Intake) -> None:
    sequence = intake.make(request(max_tokens=7, stop_tokens=[5]))
    assert (sequence.prompt, sequence.max_tokens) == (PROMPT, 7)
    assert sequence.end_tokens == {EOS, 5}
    assert sequence.num_pending == 10


def test_max_tokens_is_the_rest_of_the_context_by_default(intake: Intake) -> None:
    assert intake.make(request()).max_tokens == 118


def test_ignore_eos_takes_the_end_away(intake: Intake) -> None:
    sequence = intake.make(request(ignore_eos=True, stop_tokens=[5]))
    assert sequence.end_tokens == {5}


@pytest.mark.parametrize(
    ("fields", "problem", "param"),
    [
        ({"stop_tokens": [512]}, "stop_tokens has token 512", "stop_tokens"),
        ({"stop_tokens": [-1]}, "token -1", "stop_tokens"),
        ({"sampling": {"logit_bias": {512: 1}}}, "logit_bias has token 512", "logit_bias"),
        ({"sampling": {"logit_bias": {-3: 1}}}, "token -3", "logit_bias"),
        ({"resume": {"tokens": [2**31]}}, "resume has token 2147483648", "resume"),
        ({"resume": {"tokens": [5, 5]}, "max_tokens": 1}, "resume has 2 tokens", "resume"),
        ({"resume": {"tokens": [5]}, "sampling": {"grammar": 'root ::= "a"'}}, "token 5", "resume"),
        ({"ignore_eos": True, "sampling": {"grammar": 'root ::= "a"'}}, "grammar", "ignore_eos"),
        ({"ignore_eos": True, "sampling": {"json_schema": {}}}, "grammar", "ignore_eos"),
    ],
)
def test_bad_requests_are_refused(
    intake: Intake, fields: dict[str, Any], problem: str, param: str
) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        intake.make(request(**fields))
    assert caught.value.param == param


def test_a_bad_grammar_is_refused_before_a_slot_is_taken(intake: Intake) -> None:
    with pytest.raises(GrammarRefused):
        intake.make(request(sampling={"grammar": "root ::=" + "(" * 1_000}))


@pytest.mark.parametrize("num_done", [0, 1, 10, 20])
def test_a_resumed_answer_is_where_the_first_attempt_was(intake: Intake, num_done: int) -> None:
    answer = twin.answer(PROMPT, 20)
    first = intake.make(request(stop=["zz"]))
    shown = take(first, answer[:num_done])
    resume = {"tokens": answer[:num_done], "num_chars": len(shown)}
    second = intake.make(request(stop=["zz"], resume=resume))
    assert second.tokens == first.tokens
    assert second.num_answered == num_done
    rest = answer[num_done:]
    assert take(second, rest) == take(first, rest)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 2}, "length"),
        ({"stop_tokens": [twin.answer(PROMPT, 2)[1]]}, "stop"),
    ],
)
def test_a_resumed_answer_may_be_complete(
    intake: Intake, fields: dict[str, Any], reason: str
) -> None:
    resume = {"tokens": twin.answer(PROMPT, 2), "num_chars": 0}
    assert intake.make(request(resume=resume, **fields)).finish_reason == reason


def test_a_chat_answer_loses_its_first_space(intake: Intake) -> None:
    spaced = vocabulary.token_ids(twin.TINY.vocab_size)[vocabulary.SPACE + "ba"]
    chat = intake.make(request(messages=[{"role": "user", "content": "ba"}]))
    assert take(chat, [spaced, spaced]) == "ba ba"
    assert intake.make(request()).accept(spaced) == " ba"


def test_a_space_that_no_tokenizer_put_there_stays(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece vocabularies need not add one: Gemma's doesn't."""
    monkeypatch.setattr(intake.vocab, "adds_space", False)
    spaced = vocabulary.token_ids(twin.TINY.vocab_size)[vocabulary.SPACE + "ba"]
    chat = intake.make(request(messages=[{"role": "user", "content": "ba"}]))
    assert take(chat, [spaced, spaced]) == " ba ba"


def test_chat_without_messages_is_refused(intake: Intake) -> None:
    with pytest.raises(PromptRefused):
        intake.make(GenerateRequest(id="a", messages=[]))


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_stop_string_that_is_a_special_tokens_text_is_that_token(
    intake: Intake, ignore_eos: bool
) -> None:
    """No text is ever seen of it, so as a text it would never match."""
    sequence = intake.make(request(stop=["<s>", "ba", "</s>"], ignore_eos=ignore_eos))
    assert sequence.end_tokens == {BOS, EOS}


def test_continued_words_keep_their_first_space(intake: Intake) -> None:
    turns = [{"role": "user", "content": "a"}]
    ba = vocabulary.token_ids(twin.TINY.vocab_size)["\u2581ba"]
    begun = intake.make(request(messages=turns))
    options = {"continue_final_message": True, "add_generation_prompt": False}
    continued = intake.make(request(messages=turns, chat=options))
    assert (begun.accept(ba), continued.accept(ba)) == ("ba", " ba")
