"""Chromium without a window, driven by Playwright's core; whoever lacks it skips with a reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 20_000


@contextmanager
def browser() -> Iterator[Browser]:
    """The Chromium of this machine."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed (Debian: apt install chromium)")
    # Root has no sandbox to put it into.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=options)
        yield launched
        launched.close()


# Puts what the browser shall remember into its storage, once: a reload finds what the page kept.
REMEMBER = """stored => {
    if (sessionStorage.length) return;
    sessionStorage.setItem("remembered", "once");
    for (const [key, value] of Object.entries(stored)) localStorage.setItem(key, value);
}"""


@contextmanager
def opened(
    browser: Browser,
    url: str,
    width: int = 1280,
    stored: Mapping[str, Any] | None = None,
    **media: str,
) -> Iterator[Page]:
    """The page at `url`, once it knows the model; it may report no error, nor break its policy.

    `stored`: what the browser remembers, by key. `media`: color_scheme and reduced_motion.
    """
    context = browser.new_context(viewport={"width": width, "height": 800})
    values = {key: json.dumps(value) for key, value in (stored or {}).items()}
    context.add_init_script(f"({REMEMBER})({json.dumps(values)})")
    page = context.new_page()
    page.emulate_media(**media)  # type: ignore[arg-type]
    page.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if _is_ours(message) else None)
    page.goto(url)
    page.locator("body.ready").wait_for()
    yield page
    context.close()
    assert errors == []


def _is_ours(message: object) -> bool:
    """Chromium itself reports each refused request; those are what some tests are about."""
    text, kind = getattr(message, "text", ""), getattr(message, "type", "")
    return kind == "error" and not text.startswith("Failed to load resource")
