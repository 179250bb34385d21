"""Where things stand on the page: in windows of all sizes, in scripts of both directions."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.page import WIDTHS, composer, show_chat, show_settings, stored_chat, visit
from tests.e2e.service import Service


@pytest.mark.parametrize("width", WIDTHS)
def test_only_the_conversation_scrolls(chromium: Browser, drafting: Service, width: int) -> None:
    """However long a chat is: what is for screen readers alone must not make the page longer."""
    chats = stored_chat()
    chats["medusa.chat.1"]["messages"] *= 10
    with visit(chromium, drafting, width, chats=chats) as page:
        show_chat(page)
        page.locator("#conversation").evaluate("box => box.scrollTo(0, 0)")
        assert page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0


@pytest.mark.parametrize("size", [(640, 320), (1280, 400)])
def test_all_of_the_composer_fits_a_low_window(
    chromium: Browser, drafting: Service, size: tuple[int, int]
) -> None:
    """A phone on its side, or a browser beside another window, with Settings open."""
    with visit(chromium, drafting, chats=stored_chat()) as page:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        show_chat(page)
        show_settings(page)
        for text in ("One line", "\n".join("Several")):
            composer(page).fill(text)
            assert page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
            expect(page.locator("#send")).to_be_in_viewport(ratio=1)
            box = page.locator("#settings").bounding_box()
            assert box
            assert box["height"] > 70, "room to scroll in"
            page.locator("#key").focus()
            expect(page.locator("#key")).to_be_in_viewport()


RTL = """- واحد

  > two

| أ | ب |
|---|---|
| ج | د |

English, and then

مرحبا

```python
# مرحبا
```
"""
DIRECTION = "element => getComputedStyle(element).direction"


def test_each_block_runs_as_its_script_does(chromium: Browser, drafting: Service) -> None:
    with visit(chromium, drafting, chats=stored_chat(RTL, "مرحبا")) as page:
        page.locator("button.chat").click()
        expect(page.locator(".assistant .code")).to_be_visible()
        composer(page).fill("مرحبا")
        blocks = page.locator(".assistant .body > *").all()
        assert [each.evaluate(DIRECTION) for each in blocks] == ["rtl", "rtl", "ltr", "rtl", "ltr"]
        for place in ("button.chat", ".user .body", "#prompt"):
            assert page.locator(place).evaluate(DIRECTION) == "rtl", place
        item, text = (page.locator(f".assistant {each}").first for each in ("ul", "li"))
        outer, inner = item.bounding_box(), text.bounding_box()
        assert outer
        assert inner
        assert outer["x"] + outer["width"] > inner["x"] + inner["width"] + 10, "room for the bullet"
