"""The page for everyone: what axe finds, all ten things by keys alone, contrast, motion, widths."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.page import (
    SCHEMES,
    WIDTHS,
    ask,
    composer,
    ended,
    grows,
    kept,
    reply,
    say,
    show_chat,
    show_settings,
    stored_chat,
    texts,
    visit,
)
from tests.e2e.service import Service, wait_until

AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
RUN_AXE = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(({impact}) => ["serious", "critical"].includes(impact))
    .map(({id, nodes}) => [id, nodes.map(node => node.html)])"""


def show_panel(page: Page) -> None:
    drawer = page.get_by_role("button", name="Details", exact=True)
    if drawer.is_visible():
        drawer.click()
    expect(page.locator("#canvas")).to_be_visible()


def show_error(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "Hello")
    expect(page.locator(".said.failed")).to_be_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(
    chromium: Browser, drafting: Service, width: int, scheme: str
) -> None:
    with visit(chromium, drafting, width, chats=stored_chat(), color_scheme=scheme) as page:
        page.evaluate(AXE)
        views: list[Callable[[Page], None]] = [show_chat, show_settings, show_error, show_panel]
        found: dict[str, Any] = {"welcome": page.evaluate(RUN_AXE)}
        for view in views:
            view(page)
            found[view.__name__] = page.evaluate(RUN_AXE)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert {name: each for name, each in found.items() if each} == {}


PAIRS = [
    *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("paper", "card", "side")),
    *((kind, "code") for kind in ("soft", "keyword", "string", "number", "name")),
    *((ink, "bubble") for ink in ("ink", "soft")),
    ("came-ink", "came"),
    ("on-accent", "accent"),
    ("warn-ink", "warn"),
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_stands_out(chromium: Browser, drafting: Service, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, coloured guesses too, which axe does not see."""
    read = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)"
    with visit(chromium, drafting, color_scheme=scheme) as page:
        colours = {name: page.evaluate(read, name) for name in {n for pair in PAIRS for n in pair}}
    for pair in PAIRS:
        low, high = sorted(_luminance(colours[name]) for name in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, pair)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("motion", "moves"), [("no-preference", True), ("reduce", False)])
def test_nothing_moves_for_those_who_want_it_still(
    chromium: Browser, drafting: Service, motion: str, moves: bool
) -> None:
    with visit(chromium, drafting, length=3_000, reduced_motion=motion) as page:
        say(page, "Hello")
        grows(page)
        assert bool(page.evaluate("document.getAnimations().length")) == moves
        page.keyboard.press("Escape")


FOCUSED = """() => {
    const focused = document.activeElement;
    return focused.getAttribute("aria-label")
        || (focused.labels?.[0] ?? focused).textContent.trim().replaceAll(/\\s+/g, " ");
}"""
RING = """() => {
    const style = getComputedStyle(document.activeElement);
    const around = getComputedStyle(document.activeElement.closest("#composer") ?? document.body);
    return style.outlineStyle !== "none" || around.boxShadow.includes("0px 0px 0px 1px");
}"""


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """By keys alone, and wherever the focus is one sees it."""
    for _ in range(60):
        page.keyboard.press(key)
        assert page.evaluate(RING), page.evaluate(FOCUSED)
        if re.fullmatch(name, page.evaluate(FOCUSED)):
            return
    pytest.fail(f"60 times {key} did not reach {name}")


def test_ten_things_by_keys_alone(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, length=40, chats=stored_chat()) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.on("dialog", lambda dialog: dialog.accept())
        keys = page.keyboard
        tab_to(page, "Show me")  # the chat with code
        keys.press("Enter")
        expect(page.locator(".assistant .code")).to_be_visible()
        tab_to(page, "Copy code", "Shift+Tab")
        keys.press("Enter")
        expect(page.get_by_role("button", name="Copy code")).to_have_text("Copied")
        tab_to(page, "New chat", "Shift+Tab")
        keys.press("Enter")
        expect(composer(page)).to_be_focused()
        for turn in (1, 2, 3):
            keys.type(f"Turn {turn}")
            keys.press("Enter")
            expect(page.locator(".message")).to_have_count(2 * turn)
            ended(page)
        tab_to(page, "Regenerate", "Shift+Tab")
        keys.press("Enter")
        expect(composer(page)).to_be_focused()
        ended(page)
        tab_to(page, "Edit", "Shift+Tab")
        keys.press("Enter")
        expect(composer(page)).to_be_focused()
        keys.press("Control+A")
        keys.type("One line")
        keys.press("Shift+Enter")
        keys.type("and another")
        keys.press("Enter")
        ended(page)
        assert texts(page)[-2:] == ["One line\nand another", reply(40)]
        tab_to(page, "Settings")
        keys.press("Enter")
        tab_to(page, "Longest answer, in tokens.*", "Shift+Tab")
        keys.type("3000")
        tab_to(page, "Your message")
        keys.type("Stop me")
        keys.press("Enter")
        grows(page)
        keys.press("Escape")
        expect(page.locator(".said").last).to_have_text("You stopped this answer.")
        tab_to(page, "Start the race")
        keys.press("Enter")
        expect(page.get_by_role("button", name="Stop the race")).to_be_visible()
        keys.press("Escape")
        expect(page.get_by_role("button", name="Start the race")).to_be_visible()
        tab_to(page, "Delete chat: Turn 1", "Shift+Tab")
        keys.press("Enter")
        expect(page.locator("#chat-list li")).to_have_count(1)
        assert [chat["title"] for chat in kept(page)] == ["Show me"]


def test_an_error_and_another_try_by_keys_alone(page: Page, drafting: Service) -> None:
    keys = page.keyboard
    body = {"prompt": "ba", "n": 2, "max_tokens": 4_000, "stream": True, "ignore_eos": True}
    with drafting.client() as client, client.stream("POST", "/v1/completions", json=body):
        composer(page).focus()
        keys.type("Hello")
        keys.press("Enter")
        expect(page.locator(".said.failed")).to_be_visible()
    wait_until(lambda: drafting.gateway_counter("num_requests_running") == 0, "permits to be free")
    tab_to(page, "Try again", "Shift+Tab")
    keys.press("Enter")
    ended(page)
    assert texts(page) == ["Hello", reply()]


def test_a_phone_by_keys_alone(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, 390, length=40, chats=stored_chat()) as page:
        keys = page.keyboard
        for name, drawer in (("Chats", "#chats"), ("Details", "#panel")):
            tab_to(page, name)
            keys.press("Enter")
            expect(page.locator(drawer)).to_be_visible()
            keys.press("Escape")
            expect(page.locator(drawer)).to_be_hidden()
            assert page.evaluate(FOCUSED) == name
        tab_to(page, "Your message")
        keys.type("Hello")
        keys.press("Enter")
        ended(page)
        tab_to(page, "Details", "Shift+Tab")
        keys.press("Enter")
        tab_to(page, "Start the race")
        keys.press("Enter")
        expect(page.locator("#verdict")).to_have_text(re.compile("identical"))
        tab_to(page, "Close", "Shift+Tab")
        keys.press("Enter")
        expect(page.locator("#panel")).to_be_hidden()
        tab_to(page, "Chats", "Shift+Tab")
        keys.press("Enter")
        tab_to(page, "New chat")
        keys.press("Enter")
        expect(page.locator("#welcome")).to_be_in_viewport()


def test_answers_are_read_out_once_they_are_whole(page: Page) -> None:
    status = page.locator("#status")
    expect(status).to_have_attribute("aria-live", "polite")
    say(page, "Hello")
    expect(status).to_have_text(re.compile(r"^(Answering\.|.* guessed ahead)", re.DOTALL))
    ended(page)
    said = str(status.text_content())
    assert said.startswith(reply()[:40])
    assert "Stopped at 60 tokens." in said
    ask(page, "More")
    assert page.locator("[aria-busy=true]").count() == 0
