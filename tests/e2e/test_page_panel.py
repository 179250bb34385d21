"""What stands beside the chat: the layer of guesses, the tree, the tiles."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests import twin, vocabulary
from tests.e2e.page import ask, guessed, press, reply
from tests.e2e.service import wait_until


def test_guesses_are_coloured_and_counted(page: Page) -> None:
    ask(page, "Hello")
    figures = str(page.locator(".figures").text_content())
    count = re.search(r"60 tokens · (\d+) guessed ahead · [\d.]+ a second", figures)
    assert count is not None
    coloured = "".join(guessed(page))
    assert 0 < len(coloured) < len(reply())
    # Every guessed token is one piece of the vocabulary; a mark joins those of one step.
    pieces = map(re.escape, sorted(vocabulary.pieces(twin.TINY.vocab_size)[259:], key=len))
    split = re.compile("|".join(each.replace(vocabulary.SPACE, " ") for each in [*pieces][::-1]))
    assert len(split.findall(coloured)) == int(count[1]) > 0


def test_the_layer_can_be_switched_off_and_stays_so(page: Page) -> None:
    ask(page, "Hello")
    assert guessed(page)
    page.get_by_role("switch", name="Show guesses").uncheck()
    wait_until(lambda: not page.evaluate("CSS.highlights.has('guessed')"), "colours to go")
    page.reload()
    page.locator("body.ready").wait_for()
    expect(page.get_by_role("switch", name="Show guesses")).not_to_be_checked()
    assert not page.evaluate("CSS.highlights.has('guessed')")


def test_a_tree_can_be_stepped_through_and_replayed(page: Page) -> None:
    ask(page, "Hello")
    slider, canvas = page.get_by_role("slider"), page.locator("#canvas")
    image = canvas.get_by_role("img")
    expect(image).to_have_attribute("aria-label", re.compile(r"^Step \d+: [1-9]\d* tokens guessed"))
    assert canvas.locator(".node.came").count() > 0
    slider.focus()
    slider.press("Home")
    expect(image).to_have_attribute("aria-label", re.compile("^Step 1: "))
    assert page.evaluate("CSS.highlights.get('step').size") >= 1
    press(page, "Replay slowly")
    expect(image).to_have_attribute("aria-label", re.compile("^Step [2-9]: "))
    press(page, "Stop replay")
    expect(page.get_by_role("button", name="Replay slowly")).to_be_enabled()


def test_every_tree_is_the_one_of_its_step(page: Page) -> None:
    """What came straight along the top is the step's text, root and signs for spaces apart."""
    ask(page, "Hello")
    slider, text = page.get_by_role("slider"), reply()
    at = 0
    for index in range(12):
        slider.fill(str(index))
        expect(page.locator("#step-label")).to_have_text(re.compile(f"^Step {index + 1} of"))
        nodes = page.locator("#canvas .node:is(.came, .own) text:not(.share)").all_text_contents()
        came = "".join(nodes).replace("·", " ")
        came = came if at else came.removeprefix(" ")
        assert sorted(came) == sorted(text[at : at + len(came)])
        at += len(came)


def test_figures_follow_what_is_served(page: Page) -> None:
    ask(page, "Hello")
    expect(page.locator("#tile-step")).to_have_text(re.compile(r"^[1-9]\d*\.\d\d$"))
    expect(page.locator("#tile-batch")).to_have_text("1.0")
    expect(page.locator("#tile-queue")).to_have_text("0")
    expect(page.locator("#note-queue")).to_have_text("0 running, 8 at once")
    expect(page.locator("#model-name")).to_have_text("tiny twin")
