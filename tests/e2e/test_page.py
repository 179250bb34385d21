"""The page at / in a real browser, before both real tiers: ten things that a person does."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.page import (
    LONG,
    NUM_TOKENS,
    ask,
    bodies,
    composer,
    ended,
    grows,
    guessed,
    kept,
    press,
    reply,
    say,
    stored_chat,
    texts,
    visit,
)
from tests.e2e.service import Service, wait_until


def test_three_turns(page: Page) -> None:
    sent = bodies(page)
    for number in (1, 2, 3):
        ask(page, f"Question {number}")
        expect(page.locator(".message")).to_have_count(2 * number)
    assert [len(body["messages"]) for body in sent] == [1, 3, 5]
    expected = [text for n in (1, 2, 3) for text in (f"Question {n}", reply())]
    assert texts(page) == expected
    assert [turn["content"] for turn in sent[2]["messages"]] == expected[:-1]
    assert all(body["max_tokens"] == NUM_TOKENS for body in sent)


def test_code_is_shown_as_code_and_copied(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, chats=stored_chat()) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Show me", exact=True).click()
        answer = page.locator(".assistant .body")
        expect(answer.locator(".code .is-keyword").first).to_have_text("def")
        expect(answer.locator(".is-comment")).to_have_text("# twice")
        for tag in (
            "h1",
            "strong",
            "ol > li >> nth=1",
            "table td >> nth=1",
            "a[href][rel~=noopener]",
        ):
            expect(answer.locator(tag)).to_be_visible()
        page.get_by_role("button", name="Copy code").click()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == "def double(x):\n    return 2 * x  # twice"
        assert guessed(page) == ["bold", "return", " ", "2"]
        press(page, "Copy")
        assert page.evaluate("navigator.clipboard.readText()").startswith(
            "# A title\n\nSome **bold**"
        )


def test_stop_and_continue(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, length=LONG) as page:
        say(page, "Hello")
        grows(page)
        press(page, "Stop")
        expect(page.locator(".said")).to_have_text("You stopped this answer.")
        expect(composer(page)).to_be_focused()
        first = texts(page)[1]
        assert first
        assert reply(LONG).startswith(first)
        press(page, "Continue")
        more = re.compile(re.escape(first.rstrip()) + r"\s*\S")
        expect(page.locator(".running .body")).to_have_text(more)
        composer(page).press("Escape")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".message")).to_have_count(2)
        both = texts(page)[1]
        assert both.startswith(first)
        assert len(both) > len(first)


def test_an_answer_that_was_cut_says_so_in_words(page: Page) -> None:
    ask(page, "Hello")
    expect(page.locator(".said")).to_have_text(f"Stopped at {NUM_TOKENS} tokens.")
    press(page, "Continue")
    expect(page.locator(".said")).to_have_text(f"Stopped at {2 * NUM_TOKENS} tokens.")


def test_edit_and_resend(page: Page) -> None:
    for text in ("First", "Second"):
        ask(page, text)
    composer(page).fill("half a thought")
    page.get_by_role("button", name="Edit").first.click()
    expect(composer(page)).to_have_value("First")
    expect(page.locator("#editing")).to_contain_text("what follows it will be replaced")
    press(page, "Cancel")
    expect(composer(page)).to_have_value("half a thought")
    page.get_by_role("button", name="Edit").first.click()
    sent = bodies(page)
    ask(page, "Another first")
    assert sent[0]["messages"] == [{"role": "user", "content": "Another first"}]
    assert texts(page) == ["Another first", reply()]
    expect(page.locator(".user .body")).to_have_text(["Another first"])


def test_regenerate(page: Page) -> None:
    ask(page, "Hello")
    sent = bodies(page)
    press(page, "Regenerate")
    ended(page)
    assert [turn["role"] for turn in sent[0]["messages"]] == ["user"]
    assert texts(page) == ["Hello", reply()]


def test_race(page: Page) -> None:
    composer(page).fill("Hello")
    sent = bodies(page)
    press(page, "Start the race")
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text(re.compile(r"times as fast.*Both texts are identical\.$"))
    for name in ("off", "on"):
        expect(page.locator(f"#lane-{name} .text")).to_have_text(reply())
        assert re.search(r"\d", str(page.locator(f"#lane-{name} .speed").text_content()))
    assert [body["speculation"]["mode"] for body in sent] == ["off", "auto"]
    assert sent[0]["seed"] == sent[1]["seed"]
    expect(page.locator("#lane-off .note")).to_contain_text(" 0 guessed ahead")
    expect(page.locator("#status")).to_have_text(str(verdict.text_content()))
    expect(composer(page)).to_have_value("Hello")


def test_reload(page: Page) -> None:
    ask(page, "Hello")
    marks = guessed(page)
    page.reload()
    page.locator("body.ready").wait_for()
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Hello", exact=True).click()
    expect(page.locator(".message")).to_have_count(2)
    assert marks
    assert "".join(guessed(page)) == "".join(marks)
    ask(page, "And then?")
    assert texts(page) == ["Hello", reply(), "And then?", reply()]


@pytest.mark.parametrize("leave", ["reload", "close"])
def test_an_answer_that_one_leaves_is_stopped(
    chromium: Browser, drafting: Service, leave: str
) -> None:
    with visit(chromium, drafting, length=LONG) as left:
        say(left, "Hello")
        grows(left)
        if leave == "reload":
            left.reload()
        else:
            left.close()
        page = left if leave == "reload" else left.context.new_page()
        page.goto(drafting.url)
        page.get_by_role("button", name="Hello", exact=True).click()
        expect(page.locator(".said")).to_have_text("You stopped this answer.")
        assert reply(LONG).startswith(texts(page)[1])
        assert texts(page)[1]
        expect(page.get_by_role("button", name="Continue")).to_be_visible()


def test_two_pages_with_one_chat(page: Page, drafting: Service) -> None:
    ask(page, "First")
    other = page.context.new_page()
    other.goto(drafting.url)
    other.locator("body.ready").wait_for()
    press(other, "First")
    ask(page, "Second")
    expect(other.locator(".user .body")).to_have_text(["First", "Second"])
    ask(other, "Third")
    expect(page.locator(".user .body")).to_have_text(["First", "Second", "Third"])
    page.on("dialog", lambda dialog: dialog.accept())
    assert [text for text in texts(page) if text != reply()] == ["First", "Second", "Third"]
    page.get_by_role("button", name="Delete chat: First").click()
    expect(other.locator("#welcome")).to_be_visible()
    ask(other, "Fourth")
    assert [chat["title"] for chat in kept(page)] == ["Fourth"]


def test_two_pages_that_answer_in_one_chat(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, length=LONG, chats=stored_chat("ba")) as page:
        other = page.context.new_page()
        other.goto(drafting.url)
        for each, text in ((page, "Here"), (other, "There")):
            press(each, "Show me")
            say(each, text)
            grows(each)
        press(page, "Stop")
        expect(page.locator("#chat-list li")).to_have_count(1)
        expect(other.locator("#chat-list li")).to_have_count(2)
        grows(other)
        press(other, "Stop")
        expect(page.locator("#chat-list li")).to_have_count(2)
        asked = [[each["text"] for each in chat["messages"]][::2] for chat in kept(page)]
        assert asked == [["Show me", "There"], ["Show me", "Here"]]


def test_delete(page: Page) -> None:
    for text in ("First", "Second"):
        press(page, "New chat")
        ask(page, text)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete chat: First").click()
    expect(page.locator("#chat-list li")).to_have_count(2)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete chat: First").click()
    expect(page.locator("#chat-list li")).to_have_count(1)
    page.get_by_role("button", name="Delete chat: Second").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    assert kept(page) == []


def test_an_error_is_said_beside_the_answer(page: Page, drafting: Service) -> None:
    body = {"prompt": "ba", "n": 2, "max_tokens": 4_000, "stream": True, "ignore_eos": True}
    with drafting.client() as client, client.stream("POST", "/v1/completions", json=body):
        say(page, "Hello")
        said = page.locator(".said.failed")
        expect(said).to_have_text(re.compile(r"the limit is 2 .* It asks to wait 1 s\.$"))
        expect(page.locator(".user .body")).to_have_text(["Hello"])
    wait_until(lambda: drafting.gateway_counter("num_requests_running") == 0, "permits to be free")
    press(page, "Try again")
    ended(page)
    expect(said).to_have_count(0)
    assert texts(page) == ["Hello", reply()]


def test_a_phone(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, width=390, length=400) as page:
        say(page, "Hello")
        grows(page)
        expect(page.locator(".running .body")).to_be_in_viewport()
        box = page.locator("#composer").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 800
        ended(page)
        page.get_by_role("button", name="Details").click()
        expect(page.locator("#canvas")).to_be_in_viewport()
        press(page, "Start the race")
        expect(page.locator("#verdict")).to_have_text(re.compile("identical"))
        press(page, "Close")
        page.get_by_role("button", name="Chats").click()
        press(page, "New chat")
        expect(page.locator("#welcome")).to_be_in_viewport()
        expect(page.locator("#chats")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
