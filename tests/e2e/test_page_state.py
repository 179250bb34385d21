"""The page's state and its words, as the pure functions that they are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.page import visit
from tests.e2e.service import Service

# Calls by name, each on what the last one gave.
STEPS = """async ([start, steps]) => {
    const s = await import('/static/state.js');
    let state = {...s.fresh(), ...start};
    for (const [name, ...given] of steps) state = s[name](state, ...given);
    return state;
}"""
SERVICE = {"chat": True, "context_size": 4096, "medusa_heads": 5, "model": "m", "ready": True}


@pytest.fixture(scope="module")
def static(chromium: Browser, drafting: Service) -> Any:
    with visit(chromium, drafting) as made:
        yield made


def after(static: Page, *steps: list[Any], **start: Any) -> dict[str, Any]:
    return dict(static.evaluate(STEPS, [{"service": SERVICE, **start}, list(steps)]))


def piece(text: str, **more: Any) -> dict[str, Any]:
    step = {"draft": "", "own": text, "tree": None}
    one = {"text": text, "steps": [step], "tokens": 1, "guessed": 0, "at": 1.0}
    return {**one, "end": None, "full": None, **more}


def said(state: dict[str, Any]) -> list[str]:
    return [message["text"] for message in state["chats"][0]["messages"]]


ASKED = [["send", "Hello", 1], ["received", 1, piece("Hi")]]


def test_an_answer_grows_and_ends(static: Page) -> None:
    draft = {"draft": " you", "own": "!", "tree": None}
    more = piece(" you!", steps=[draft], tokens=2, guessed=1, at=101.0)
    state = after(static, *ASKED, ["received", 1, more], ["ended", 1])
    answer = state["chats"][0]["messages"][1]
    assert (answer["text"], answer["tokens"], answer["guessed"]) == ("Hi you!", 3, 1)
    assert answer["marks"] == [[2, 6]]
    assert answer["rate"] == pytest.approx(20)
    assert state["run"] is None
    assert [(step["from"], step["to"]) for step in state["trail"]] == [(0, 2), (2, 7)]


@pytest.mark.parametrize("leave", [["begin"], ["open", 7], ["stop"], ["remove", 1]])
def test_a_run_that_was_left_changes_nothing_more(static: Page, leave: list[Any]) -> None:
    late = [["received", 1, piece(" there")], ["ended", 1, "broke"]]
    state = after(static, *ASKED, leave)
    assert state["run"] is None
    assert after(static, *ASKED, leave, *late) == state
    assert [said({"chats": [chat]}) for chat in state["chats"]] in ([["Hello", "Hi"]], [])


@pytest.mark.parametrize(
    "step",
    [["send", "More", 2], ["regenerate", 2], ["resume", 2], ["edit", 0, ""], ["race", "", 2, 2]],
)
def test_while_it_answers_nothing_else_begins(static: Page, step: list[Any]) -> None:
    assert after(static, *ASKED, step) == after(static, *ASKED)


def test_an_edit_replaces_what_follows_it(static: Page) -> None:
    steps = [*ASKED, ["ended", 1], ["edit", 0, "typed"]]
    assert after(static, *steps)["editing"] == {"index": 0, "typed": "typed"}
    twice = after(static, *steps, ["edit", 0, "what is edited"])  # what was typed comes back
    assert twice["editing"] == {"index": 0, "typed": "typed"}
    state = after(static, *steps, ["send", "Other", 2])
    assert said(state) == ["Other", ""]
    assert (state["editing"], state["chats"][0]["title"]) == (None, "Other")
    assert said(after(static, *steps, ["cancelEdit"])) == ["Hello", "Hi"]


def test_the_next_state_is_another_and_the_last_one_stays(static: Page) -> None:
    frozen = """async ([steps]) => {
        const s = await import('/static/state.js');
        const freeze = o => (o && typeof o === 'object' && !Object.isFrozen(o)
            && (Object.freeze(o), Object.values(o).forEach(freeze)), o);
        let state = freeze(s.fresh());
        for (const [name, ...given] of steps) state = freeze(s[name](state, ...given));
        return state;
    }"""
    steps = [*ASKED, ["ended", 1], ["regenerate", 2], ["stop"], ["resume", 3], ["edit", 0, ""]]
    steps += [["configure", {"plain": True}], ["race", "x", 4, 4], ["stop"], ["remove", 1]]
    assert static.evaluate(frozen, [steps])["chats"] == []


def test_what_is_asked(static: Page) -> None:
    ask = """async ([steps]) => {
        const s = await import('/static/state.js');
        let state = {...s.fresh(), service: {context_size: 4096, chat: true}};
        for (const [name, ...given] of steps) state = s[name](state, ...given);
        return s.requested(state, 9);
    }"""
    settings = {"system": "Be brief.", "length": 7, "temperature": 0, "drafts": "off"}
    failed = [["send", "Hello", 1], ["ended", 1, "refused"], ["send", "Again", 2]]
    body = static.evaluate(ask, [[["configure", settings], *failed]])
    # Many templates want turns to alternate, and the answer between had no word.
    turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
    assert turns == [("system", "Be brief."), ("user", "Hello\n\nAgain")]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (7, 0, 9)
    assert body["speculation"] == {"mode": "off", "show_tree": True}
    more = [*ASKED, ["received", 1, piece("", end="length")], ["ended", 1], ["resume", 2]]
    assert static.evaluate(ask, [more])["messages"][-1] == {"role": "assistant", "content": "Hi"}


def test_a_chat_stays_what_it_began_as(static: Page) -> None:
    text: list[list[Any]] = [["configure", {"plain": True}], *ASKED, ["ended", 1], ["begin"]]
    back: list[list[Any]] = [
        ["configure", {"plain": False}],
        ["open", 1],
        ["served", {**SERVICE, "chat": None}],
    ]
    state = after(static, *text, *back, ["served", None])
    assert (state["current"], state["chats"][0]["kind"]) == (1, "text")
    assert after(static, *text, *back, ["configure", {"temperature": 0.5}])["current"] == 1
    assert after(static, *text, *back, ["configure", {"plain": False}])["current"] is None
    other = after(static, ["served", {**SERVICE, "chat": False}], ["served", None], *ASKED)
    assert other["chats"][0]["kind"] == "text"


KEPT = {"id": 1, "title": "Hello", "kind": "chat", "messages": [{"role": "user", "text": "Other"}]}


@pytest.mark.parametrize("others", [KEPT, None])
def test_what_another_page_did_to_a_chat(static: Page, others: dict[str, Any] | None) -> None:
    here = after(static, *ASKED, ["ended", 1], ["synced", 1, others, 9])
    assert [chat["messages"] for chat in here["chats"]] == ([KEPT["messages"]] if others else [])
    assert (here["current"], here["trail"]) == (1 if others else None, [])
    away = after(static, *ASKED, ["begin"], ["race", "Hi", 2, 2], ["synced", 1, others, 9])
    assert (away["current"], away["run"]) == (None, {"id": 2, "lane": 0})


def test_what_another_page_did_to_the_chat_that_is_answered(static: Page) -> None:
    """What it dropped is kept again at the end; beside what it kept this one is another."""
    asked = after(static, *ASKED)
    assert after(static, *ASKED, ["synced", 1, None, 9]) == asked
    more = after(static, *ASKED, ["synced", 1, KEPT, 9], ["received", 1, piece(" there")])
    assert (more["current"], more["run"]) == (9, {"id": 1, "chat": 9})
    assert [(chat["id"], said({"chats": [chat]})) for chat in more["chats"]] == [
        (9, ["Hello", "Hi there"]),
        (1, ["Other"]),
    ]


WORDS = "async ([name, ...given]) => (await import('/static/words.js'))[name](...given)"


@pytest.mark.parametrize(
    ("rates", "guesses", "heads", "says"),
    [
        ((100, 150), 40, 5, r"^With Medusa’s guesses: 1\.50 times as fast, 2\.00 tokens a step"),
        ((100, 150), 40, 0, r"^With repeating words of the text \(prompt lookup\): 1\.50"),
        ((100, 300), 40, 5, "other work slowed the first run"),
        ((100, 97), 0, 5, r"^No gain \(0\.97 times as fast\)\. Guessing would not pay here"),
        ((100, 101), 0, 0, "no Medusa heads are loaded"),
        ((100, 102), 40, 5, r"^Even \(1\.02"),
        ((100, 50), 40, 5, r"^Slower with Medusa’s guesses: 0\.50 .*noisy"),
        ((100, 0), 40, 5, "^Too short to compare"),
    ],
)
def test_the_verdict_is_what_the_numbers_are(
    static: Page, rates: tuple[int, int], guesses: int, heads: int, says: str
) -> None:
    lanes = [
        {"tokens": 80, "rate": rate, "text": "same", "guessed": guesses, "steps": 40}
        for rate in rates
    ]
    verdict = static.evaluate(WORDS, ["verdict", lanes, {"medusa_heads": heads}])
    assert re.search(says, verdict)


def test_texts_that_part_are_said_to_part(static: Page) -> None:
    lanes = [
        {"tokens": 80, "rate": 9, "text": text, "guessed": 9, "steps": 40} for text in ("ab", "ac")
    ]
    assert "The texts part after 1 character," in static.evaluate(WORDS, ["verdict", lanes, {}])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"end": "length", "tokens": 256}, "Stopped at 256 tokens."),
        ({"end": "length", "tokens": 256, "full": True}, "fills all 4096 tokens"),
        ({"end": "stopped", "tokens": 3}, "You stopped this answer."),
        ({"end": "failed", "problem": "Too many."}, "Too many."),
        ({"end": "stop", "tokens": 3}, ""),
    ],
)
def test_why_an_answer_ended(static: Page, answer: dict[str, Any], says: str) -> None:
    said = static.evaluate(WORDS, ["ending", answer, SERVICE])
    assert says in said if says else said == ""
