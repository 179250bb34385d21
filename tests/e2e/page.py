"""The page at / as a person uses it: what is typed, pressed and read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests import twin, twin_heads, vocabulary
from tests.e2e.browser import opened
from tests.e2e.service import Service, serve

NUM_TOKENS = 60
LONG = 3_000
WIDTHS = (1200, 800, 390)
SCHEMES = ("light", "dark")

MARKDOWN = """# A title

Some **bold** words, `code` and [a link](https://example.org).

1. one
2. two

```python
def double(x):
    return 2 * x  # twice
```

| a | b |
|---|---|
| 1 | 2 |
"""


@contextmanager
def drafting_service(twin_path: Path, folder: Path) -> Iterator[Service]:
    """With heads and a chat template; quick enough to wait for, slow enough to be watched."""
    heads = twin_heads.write(folder / "heads.gguf")
    settings = {"medusa_path": heads, "max_in_flight": 2, "chat_template": "vicuna"}
    settings["model_server_module"] = "tests.e2e.paced"
    # Whether drafts pay, in a race, must not hang on the clock here.
    with serve(twin_path, folder, medusa_mode="tree", **settings) as made:
        yield made


def visit(
    browser: Browser,
    service: Service,
    width: int = 1280,
    *,
    length: int = NUM_TOKENS,
    chats: dict[str, Any] | None = None,
    **media: str,
) -> AbstractContextManager[Page]:
    """The page with settings that give answers which are known."""
    stored = {"medusa.settings": {"temperature": 0, "length": length}, **(chats or {})}
    return opened(browser, service.url, width, stored, **media)


def stored_chat(answer: str = MARKDOWN, question: str = "Show me") -> dict[str, Any]:
    """A chat as the browser keeps it. The second word and the return of the code were guessed."""
    marks = [[at, at + len(word)] for word in ("bold", "return 2") if (at := answer.find(word)) > 0]
    reply = {
        "role": "assistant",
        "text": answer,
        "marks": marks,
        "tokens": 70,
        "steps": 40,
        "guessed": 30,
        "rate": 20,
        "end": "stop",
        "full": False,
        "problem": "",
    }
    messages = [{"role": "user", "text": question}, reply]
    return {
        "medusa.chat.1": {
            "id": 1,
            "title": question,
            "kind": "chat",
            "messages": messages,
            "changed": 1,
        }
    }


def reply(num_tokens: int = NUM_TOKENS) -> str:
    """To any chat: its prompt ends in the colon of `ASSISTANT:`."""
    colon = vocabulary.token_ids(twin.TINY.vocab_size)[":"]
    return twin.text(twin.answer([colon], num_tokens)).removeprefix(" ")


def composer(page: Page) -> Locator:
    return page.locator("#prompt")


def say(page: Page, text: str) -> None:
    composer(page).fill(text)
    composer(page).press("Enter")


def ask(page: Page, text: str) -> None:
    """Say it, and wait for the answer's end."""
    say(page, text)
    ended(page)


def ended(page: Page) -> None:
    expect(page.locator("#status")).not_to_have_text("Answering.")
    expect(page.locator("#send")).to_be_visible()


def grows(page: Page) -> None:
    """Some of an answer has come, and it still goes on."""
    expect(page.locator(".running .body")).to_have_text(re.compile(r"(\S+\s+){3}"))


def kept(page: Page) -> list[dict[str, Any]]:
    """The chats that the browser keeps, newest first."""
    read = (
        "Object.entries(localStorage).filter(([k]) => k.startsWith('medusa.chat.')).map(e => e[1])"
    )
    chats = [json.loads(each) for each in page.evaluate(read)]
    return sorted(chats, key=lambda chat: -int(chat["changed"]))


def texts(page: Page) -> list[str]:
    """Of the newest chat."""
    return [message["text"] for message in kept(page)[0]["messages"]]


def bodies(page: Page) -> list[dict[str, Any]]:
    """What is sent to be answered from here on."""
    sent: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("completions"):
            sent.append(dict(request.post_data_json or {}))

    page.on("request", note)
    return sent


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).last.click()


def show_chat(page: Page) -> None:
    drawer = page.get_by_role("button", name="Chats", exact=True)
    if drawer.is_visible():
        drawer.click()
    page.get_by_role("button", name="Show me", exact=True).click()
    expect(page.locator(".assistant .code").last).to_be_visible()


def show_settings(page: Page) -> None:
    press(page, "Settings")
    expect(page.locator("#settings")).to_be_visible()


def guessed(page: Page) -> list[str]:
    """The texts that are coloured as guessed ahead, in order of the page."""
    return list(
        page.evaluate("""() => [...CSS.highlights.get("guessed") ?? []].map(range => {
            const live = new Range();
            live.setStart(range.startContainer, range.startOffset);
            live.setEnd(range.endContainer, range.endOffset);
            return live;
        }).sort((a, b) => a.compareBoundaryPoints(0, b)).map(String)""")
    )
