"""/docs in a browser that reaches nothing but this machine."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from tests.e2e.browser import browser
from tests.e2e.service import Service

pytestmark = pytest.mark.slow


def test_the_docs_need_no_internet(service: Service) -> None:
    elsewhere: list[str] = []

    def only_here(route: Route) -> None:
        if route.request.url.startswith((f"{service.url}/", "data:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    with browser() as chromium:
        page = chromium.new_page()
        page.route("**/*", only_here)
        page.goto(f"{service.url}/docs")
        expect(page.get_by_role("heading", name="Medusa gateway")).to_be_visible()
        operation = page.locator("#operations-OpenAI-chat_completions_v1_chat_completions_post")
        operation.locator(".opblock-summary").click()
        expect(operation.get_by_text("Answer a chat").first).to_be_visible()
        operation.get_by_role("button", name="Try it out").click()
        expect(operation.get_by_role("button", name="Execute")).to_be_visible()
        chromium.close()
    assert elsewhere == []
