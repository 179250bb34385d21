"""What went wrong on the page once, and must not again."""

from __future__ import annotations

import re
import signal

import pytest
from playwright.sync_api import Browser, Page, expect

from api.routes.ops import FOLDER
from tests.e2e.browser import opened
from tests.e2e.page import (
    LONG,
    ask,
    bodies,
    composer,
    ended,
    grows,
    kept,
    press,
    reply,
    say,
    stored_chat,
    texts,
    visit,
)
from tests.e2e.service import Service

MARKUP = """<img src=x onerror="window.hit = 1"> <script>window.hit = 2</script>

[a](javascript:window.hit=3) [b](JaVaScRiPt:window.hit=4) [c](data:text/html,x)

![picture](https://example.org/pixel.png) <a href="javascript:window.hit=5">d</a>

```html"><script>window.hit = 6</script>
<b onclick="window.hit = 7">code</b>
```
"""


def test_a_new_chat_during_an_answer_has_no_old_turns(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, length=LONG) as page:
        say(page, "Old")
        grows(page)
        press(page, "New chat")
        expect(page.locator(".message")).to_have_count(0)
        expect(page.locator("#send")).to_be_visible()
        sent = bodies(page)
        say(page, "New")
        grows(page)
        press(page, "Stop")
        assert sent[0]["messages"] == [{"role": "user", "content": "New"}]
        expect(page.locator(".user .body")).to_have_text(["New"])
        old = next(chat for chat in kept(page) if chat["title"] == "Old")
        assert reply(LONG).startswith(old["messages"][1]["text"])
        assert old["messages"][1]["end"] == "stopped"


def test_what_is_shown_is_what_is_sent_whatever_was_switched_before(page: Page) -> None:
    ask(page, "Hello")
    sent = bodies(page)
    press(page, "Settings")
    switch = page.get_by_label("Continue my text instead of answering it")
    switch.check()
    expect(page.locator(".message")).to_have_count(0)
    ask(page, "ba be")
    ask(page, " bi")
    switch.uncheck()
    expect(page.locator(".message")).to_have_count(0)
    ask(page, "Hello again")
    first, second, third = sent
    assert first["prompt"] == "ba be"
    continued = texts_of(page, "ba be")
    assert second["prompt"] == "".join(continued[:3])
    assert third["messages"] == [{"role": "user", "content": "Hello again"}]


def texts_of(page: Page, title: str) -> list[str]:
    chat = next(chat for chat in kept(page) if chat["title"] == title)
    return [message["text"] for message in chat["messages"]]


def test_what_is_typed_while_it_answers_stays(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, length=400) as page:
        say(page, "Hello")
        grows(page)
        composer(page).fill("my next thought")
        composer(page).press("Enter")  # not while it answers
        ended(page)
        expect(composer(page)).to_have_value("my next thought")
        expect(page.locator(".user .body")).to_have_text(["Hello"])


def test_a_model_server_that_dies_is_waited_for_in_words(
    chromium: Browser, drafting: Service
) -> None:
    with visit(chromium, drafting, length=LONG) as page:
        say(page, "Hello")
        grows(page)
        drafting.model_server.stop(signal.SIGKILL)
        try:
            said = page.locator(".running .said")
            expect(said).to_contain_text("Waiting: no model server answers.")
            expect(page.locator("#trouble")).to_contain_text("No model server answers.")
            assert "Errno" not in page.locator("body").inner_text()
            page.get_by_text("Details", exact=True).last.click()
            expect(page.locator("#reason")).to_contain_text("http://127.0.0.1:")
        finally:
            drafting.model_server.start()
            drafting.wait_ready()
        expect(page.locator("#trouble")).to_be_hidden()
        expect(said).to_be_hidden()
        press(page, "Stop")
        assert reply(LONG).startswith(texts(page)[1])


def test_what_is_said_of_guessing_is_what_is_loaded(
    chromium: Browser, drafting: Service, service: Service
) -> None:
    with visit(chromium, drafting) as page:
        expect(page.locator("#how")).to_contain_text("the 5 Medusa heads, guess")
    with opened(chromium, service.url) as page:
        expect(page.locator("#how")).to_contain_text("prompt lookup; no Medusa heads are loaded")
        # Without a chat template texts are continued, and nothing else is offered.
        expect(page.get_by_label("Text to continue")).to_be_visible()
        expect(page.locator("#plain")).to_be_disabled()
        sent = bodies(page)
        ask(page, "ba be")
        assert sent[0]["prompt"] == "ba be"


@pytest.mark.parametrize("words", ["what pays", "in vain", "Medusa on", "Medusa off", "Errno"])
def test_words_that_nobody_understands_are_gone(words: str) -> None:
    for path in (*FOLDER.glob("*.html"), *FOLDER.glob("*.js")):
        assert words not in path.read_text(), path.name


def test_the_answers_length_fits_the_context(chromium: Browser, drafting: Service) -> None:
    with opened(chromium, drafting.url) as page:
        sent = bodies(page)
        say(page, "Hello")
        grows(page)
        press(page, "Stop")
        assert sent[0]["max_tokens"] == 1024  # of 4,096
        expression = (
            "async size => (await import('/static/state.js')).roomFor({context_size: size})"
        )
        assert page.evaluate(expression, 512) == 256


@pytest.mark.parametrize(
    ("setting", "sends"),
    [("length", "Enter"), ("temperature", "Send"), ("length", "What is a black hole?")],
)
def test_a_setting_that_is_wrong_is_shown(
    chromium: Browser, drafting: Service, setting: str, sends: str
) -> None:
    """The longest answer was kept beside a larger model; the temperature has just been cleared."""
    with visit(chromium, drafting, length=99_999 if setting == "length" else 40) as page:
        wrong = page.locator(f"#{setting}")
        if setting == "temperature":
            press(page, "Settings")
            wrong.fill("")
            press(page, "Settings")
        expect(page.locator("#settings")).to_be_hidden()
        composer(page).fill("Hello")
        if sends == "Enter":
            composer(page).press("Enter")
        else:
            press(page, sends)
        expect(wrong).to_be_visible()
        expect(wrong).to_be_focused()
        expect(page.locator(".message")).to_have_count(0)
        wrong.fill("1")
        press(page, "Send")
        expect(page.locator(".message")).to_have_count(2)
        ended(page)


@pytest.mark.parametrize("asks", ["Send", "Regenerate", "Start the race"])
def test_a_key_that_no_request_can_carry_is_shown(page: Page, asks: str) -> None:
    """Pages that show keys have invisible characters around them, or within."""
    ask(page, "Hello")
    sent = bodies(page)
    press(page, "Settings")
    key = page.get_by_label("API key")
    key.fill("sk-abc\u200bdef")
    press(page, "Settings")
    composer(page).fill("Hello again")
    press(page, asks)
    expect(key).to_be_focused()
    assert not key.evaluate("key => key.validity.valid")
    expect(page.locator(".said.failed")).to_have_count(0)
    assert sent == []
    with page.expect_request("**/chat/completions") as asked:
        key.fill(" sk-abc\u00a0")
        # As long as a person does; the key is kept meanwhile, and the page drawn.
        page.get_by_role("button", name=asks, exact=True).last.click(delay=150)
    assert asked.value.headers["authorization"] == "Bearer sk-abc"


def test_a_chat_that_fills_the_context_says_so(chromium: Browser, drafting: Service) -> None:
    long = {**stored_chat("ba " * 3_900)}
    with visit(chromium, drafting, chats=long, length=200) as page:
        page.get_by_role("button", name="Show me", exact=True).click()
        ask(page, "Hello")
        expect(page.locator(".said").last).to_contain_text("fills all 4096 tokens")
        expect(page.get_by_role("button", name="Continue")).to_have_count(0)


def test_a_chat_that_is_too_long_says_what_to_do(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, chats=stored_chat("ba " * 4_040)) as page:
        page.get_by_role("button", name="Show me", exact=True).click()
        say(page, "Hello")
        expect(page.locator(".said.failed")).to_contain_text("Start a new chat")


@pytest.mark.parametrize("place", ["answer", "question", "title"])
def test_markup_is_text(chromium: Browser, drafting: Service, place: str) -> None:
    question = MARKUP if place != "answer" else "Show me"
    with visit(chromium, drafting, chats=stored_chat(MARKUP, question)) as page:
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        page.locator("button.chat").click()
        expect(page.locator(".assistant .code")).to_be_visible()
        answer = page.locator("#messages")
        assert answer.locator("img, script, [onclick], [onerror]").count() == 0
        links = answer.locator(".assistant a[href]")
        assert [each.get_attribute("href") for each in links.all()] == [
            "https://example.org/pixel.png"
        ]
        expect(answer).to_contain_text('<img src=x onerror="window.hit = 1">')
        assert page.evaluate("window.hit") is None
        assert [url for url in elsewhere if not url.startswith(drafting.url)] == []


def test_nothing_that_nodes_say_becomes_more_than_a_known_element(page: Page) -> None:
    """Were the gateway to say so."""
    nodes = [
        {"tag": "script", "children": [{"text": "window.hit = 1"}]},
        {"tag": "a", "href": "javascript:window.hit=2", "children": [{"text": "a"}]},
        {"tag": "img", "src": "x", "onerror": "window.hit = 3", "children": []},
    ]
    made = page.evaluate(
        """async nodes => {
            const { Prose } = await import('/static/prose.js');
            const element = document.body.appendChild(document.createElement('div'));
            new Prose(element, async () => nodes, () => {}).show('text');
            await new Promise(resolve => setTimeout(resolve, 500));
            return element.innerHTML;
        }""",
        nodes,
    )
    assert made == '<a dir="auto">a</a>'


def test_half_an_answer_is_read_while_it_grows(page: Page) -> None:
    text = "Some **bold** words, then\n\n- one\n- two"
    shown = page.evaluate(
        """async text => {
            const { Prose } = await import('/static/prose.js');
            const element = document.body.appendChild(document.createElement('div'));
            const headers = {'content-type': 'application/json'};
            const parse = async text => {
                const body = JSON.stringify({text});
                const answer = await fetch('page/markdown', {method: 'POST', headers, body});
                return (await answer.json()).nodes;
            };
            const prose = new Prose(element, parse, () => {});
            const seen = [];
            for (let end = 1; end <= text.length; end += 1) {
                prose.show(text.slice(0, end));
                seen.push(element.textContent);
                await new Promise(resolve => setTimeout(resolve, 30));
            }
            for (let tries = 0; tries < 100 && !element.querySelector('li + li'); tries += 1)
                await new Promise(resolve => setTimeout(resolve, 100));
            return [seen, element.innerHTML];
        }""",
        text,
    )
    seen, html = shown
    plain = html.replace("\n", "").replace(' dir="auto"', "")
    assert plain.startswith("<p>Some <strong>bold</strong> words, then</p><ul>")
    # No letter is missing or twice there at any time.
    assert [re.sub(r"\W", "", each) for each in seen] == [
        re.sub(r"\W", "", text[: end + 1]) for end in range(len(text))
    ]
