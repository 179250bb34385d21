"""The page at / in a real browser, before both real tiers, on the model whose answers are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import twin, twin_heads, vocabulary
from tests.e2e.browser import browser, opened
from tests.e2e.service import Service, serve

PROMPT = twin.prompt(9, seed=3)
NUM_TOKENS = 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def drafting(
    chromium: Browser, twin_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page")
    heads = twin_heads.write(folder / "heads.gguf")
    settings = {"medusa_path": heads, "max_in_flight": 2, "chat_template": "vicuna"}
    # Whether drafts pay, in a race, must not hang on the clock here.
    with serve(twin_path, folder, medusa_mode="tree", **settings) as made:
        yield made


@pytest.fixture
def page(chromium: Browser, drafting: Service) -> Iterator[Page]:
    with opened(chromium, drafting.url) as made:
        yield made


def fill(page: Page, mode: str = "tree", num_tokens: int = NUM_TOKENS) -> None:
    page.get_by_label("Complete", exact=True).check()
    page.get_by_label("Text to continue").fill(twin.prompt_text(PROMPT))
    page.get_by_label("Tokens", exact=True).fill(str(num_tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("combobox", name="Drafts").select_option(mode)


def generate(page: Page, **settings: Any) -> None:
    fill(page, **settings)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Done"))


def answer(view: Locator) -> str:
    """The text behind the prompt."""
    return "".join(view.locator(".step").all_text_contents())


def known(num_tokens: int = NUM_TOKENS) -> str:
    return twin.text(twin.answer(PROMPT, num_tokens))


def reply(num_tokens: int = NUM_TOKENS) -> str:
    """To any chat: its prompt ends in the colon of `ASSISTANT:`."""
    colon = vocabulary.token_ids(twin.TINY.vocab_size)[":"]
    return twin.text(twin.answer([colon], num_tokens)).removeprefix(" ")


def test_it_opens_on_a_chat_with_a_question(page: Page) -> None:
    question = page.get_by_label("Your message").input_value()
    assert question.endswith("?")
    expect(page.locator("#curl")).to_contain_text("/v1/chat/completions --json")
    expect(page.locator("#curl")).to_contain_text(f'"content": "{question}"')
    page.get_by_role("button", name="Race").click()
    expect(page.locator("#verdict")).to_have_text(re.compile("identical"))
    assert page.locator("#lane-on .text").text_content() == reply(200)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Done"))
    assert page.locator(".turn").all_text_contents() == [question, reply(200)]
    assert page.locator(".turn mark").count() > 0


def test_without_a_chat_template_it_opens_on_texts(chromium: Browser, service: Service) -> None:
    with opened(chromium, service.url) as page:
        expect(page.get_by_label("Complete", exact=True)).to_be_checked()
        expect(page.get_by_label("Text to continue")).to_be_visible()
        expect(page.get_by_label("Chat", exact=True)).to_be_disabled()


def test_an_answer_is_streamed_with_its_drafts_coloured(page: Page) -> None:
    generate(page)
    assert answer(page.locator("#transcript")) == known()
    drafted = page.locator("#transcript mark").all_text_contents()
    summary = str(page.locator("#summary").text_content())
    assert re.match(rf"{NUM_TOKENS} tokens in \d+ steps, [1-9]", summary)
    count = re.search(r"(\d+) were guessed ahead", summary)
    assert count is not None
    # Every drafted token is one piece of the vocabulary; a mark joins those of one step.
    pieces = sorted({twin.text([token]) for token in twin.answer(PROMPT, NUM_TOKENS)}, key=len)
    split = re.compile("|".join(map(re.escape, reversed(pieces))))
    assert sum(len(split.findall(mark)) for mark in drafted) == int(count[1]) > 0


def test_a_tree_can_be_stepped_through_and_replayed(page: Page) -> None:
    generate(page)
    slider, canvas = page.get_by_role("slider"), page.locator("#canvas")
    image = canvas.get_by_role("img")
    expect(image).to_have_attribute("aria-label", re.compile(r"^Step \d+: [1-9]\d* tokens guessed"))
    assert canvas.locator(".node.came").count() > 0
    slider.focus()
    slider.press("Home")
    expect(image).to_have_attribute("aria-label", re.compile("^Step 1: "))
    expect(page.locator("#transcript .step").first).to_have_class("step current")
    page.get_by_role("button", name="Replay slowly").click()
    expect(page.locator("#transcript .step.future").first).to_be_hidden()
    page.get_by_role("button", name="Stop replay").click()
    expect(page.locator("#transcript .step.future")).to_have_count(0)


def test_every_tree_is_the_one_of_its_step(page: Page) -> None:
    """What came straight along the top is the step's text, root and signs for spaces apart."""
    generate(page)
    slider = page.get_by_role("slider")
    for index, step in enumerate(page.locator("#transcript .step").all()[:12]):
        slider.fill(str(index))
        nodes = page.locator("#canvas .node:is(.came, .own) text:not(.share)").all_text_contents()
        assert sorted("".join(nodes)) == sorted(str(step.text_content()).replace(" ", "·"))


def test_a_race_shows_both_answers_and_says_how_it_went(page: Page) -> None:
    fill(page, num_tokens=120)
    page.get_by_role("button", name="Race").click()
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text(re.compile(r"times the speed.*The two texts are identical\.$"))
    lanes = [page.locator(f"#lane-{name}") for name in ("off", "on")]
    assert [answer(lane.locator(".text")) for lane in lanes] == [known(120)] * 2
    assert [lane.locator("mark").count() > 0 for lane in lanes] == [False, True]
    for lane in lanes:
        assert re.fullmatch(r"[\d.]+ tokens/s", str(lane.locator(".speed").text_content()))
    assert page.locator("#status").text_content() == verdict.text_content()
    generate(page)
    expect(page.locator("#lanes")).to_be_hidden()


@pytest.mark.parametrize(
    ("rates", "drafted", "heads", "says"),
    [
        ((100, 150), 40, 5, r"^With Medusa: 1\.50 times the speed, 2\.00 tokens a step"),
        ((100, 300), 40, 5, "other work slowed the first run"),
        ((100, 97), 0, 5, r"^No gain here \(0\.97 .*would not have paid on this machine"),
        ((100, 101), 0, 0, "no Medusa heads are loaded"),
        ((100, 102), 40, 5, r"^Even \(1\.02"),
        ((100, 50), 40, 5, r"^Medusa lost here: 0\.50 .*noisy"),
        ((100, 0), 40, 5, "too few to compare"),
    ],
)
def test_the_verdict_is_what_the_numbers_are(
    page: Page, rates: tuple[int, int], drafted: int, heads: int, says: str
) -> None:
    off, on = (
        {"tokens": 80, "rate": rate, "text": "same", "drafted": drafted, "perStep": 2}
        for rate in rates
    )
    call = "async (given) => (await import('/static/race.js')).verdict(...given)"
    assert re.search(says, page.evaluate(call, [off, on, heads]))


def test_texts_that_part_are_said_to_part(page: Page) -> None:
    on, off = (
        {"tokens": 80, "rate": 9, "text": t, "drafted": 9, "perStep": 2} for t in ("ab", "ac")
    )
    call = "async (given) => (await import('/static/race.js')).verdict(...given)"
    assert "The texts part after 1 characters" in page.evaluate(call, [off, on, 5])


def test_a_chat_goes_on_until_it_is_cleared(page: Page) -> None:
    fill(page)
    page.get_by_label("Chat", exact=True).check()
    for number in (1, 2):
        page.get_by_label("Your message").fill("Hello")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#prompt")).to_have_value("")
        replies = page.locator(".turn:not(.user)")
        expect(replies).to_have_count(number)
        assert answer(replies.last) == reply()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_keys_reach_everything_run_and_stop(page: Page) -> None:
    page.locator("body").click(position={"x": 1, "y": 1})
    order = []
    for _ in range(10):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
    form = ["chat", "prompt", "max-tokens", "temperature", "mode", "generate", "race"]
    assert order[:9] == [*form, "transcript", "canvas"]
    fill(page, mode="off", num_tokens=4_000)
    page.get_by_label("Text to continue").press("Control+Enter")
    expect(page.locator("#transcript .step").nth(5)).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    shown = answer(page.locator("#transcript"))
    assert shown
    assert known(4_000).startswith(shown)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_markup_in_a_prompt_is_text(page: Page) -> None:
    prompt = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    fill(page)
    page.get_by_label("Text to continue").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Done"))
    assert page.locator("#transcript .prompt").text_content() == prompt
    assert page.locator("#transcript :is(img, script)").count() == 0


def test_a_refusal_is_shown_in_its_own_words(page: Page, drafting: Service) -> None:
    body = {"prompt": "ba", "n": 2, "max_tokens": 4_000, "stream": True, "ignore_eos": True}
    fill(page)
    with drafting.client() as client, client.stream("POST", "/v1/completions", json=body):
        page.get_by_role("button", name="Generate").click()
        alert = page.get_by_role("alert")
        expect(alert).to_have_text(re.compile(r"the limit is 2 .* It asks to wait 1 s\.$"))
    generate(page)
    expect(alert).to_be_hidden()


def test_a_model_server_that_is_down_is_said_to_be(page: Page, drafting: Service) -> None:
    drafting.model_server.stop()
    try:
        banner = page.locator("#banner")
        expect(banner).to_contain_text("No model server is ready: http://127.0.0.1:")
    finally:
        drafting.model_server.start()
        drafting.wait_ready()
    expect(banner).to_be_hidden()
    generate(page)
    assert answer(page.locator("#transcript")) == known()


def test_figures_follow_what_is_served(page: Page) -> None:
    generate(page, num_tokens=400)
    expect(page.locator("#tile-step")).to_have_text(re.compile(r"^[1-9]\d*\.\d\d$"))
    expect(page.locator("#tile-batch")).to_have_text("1.0")
    expect(page.locator("#tile-queue")).to_have_text("0")
    expect(page.locator("#note-queue")).to_have_text("0 running, 8 slots")
    assert page.locator("#model-name").text_content() == "tiny twin, 5 Medusa heads"


def test_it_fits_a_phone(chromium: Browser, drafting: Service) -> None:
    with opened(chromium, drafting.url, width=390) as page:
        fill(page, num_tokens=120)
        page.get_by_role("button", name="Race").click()
        expect(page.locator("#verdict")).to_have_text(re.compile("identical"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


PAIRS = [
    *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("paper", "card")),
    ("came-ink", "came"),
    ("on-accent", "accent"),
    ("warn-ink", "warn"),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(chromium: Browser, drafting: Service, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    read = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)"
    with opened(chromium, drafting.url, color_scheme=scheme) as page:
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
    with opened(chromium, drafting.url, reduced_motion=motion) as page:
        fill(page, mode="off", num_tokens=4_000)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#transcript .step").nth(2)).to_be_attached()
        assert bool(page.evaluate("document.getAnimations().length")) == moves
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text("Stopped.")
