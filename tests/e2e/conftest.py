"""One service for the whole session, the tiny known-answer model behind both tiers; one browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import browser
from tests.e2e.page import drafting_service, visit
from tests.e2e.service import Service, serve


@pytest.fixture(scope="session")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(twin_path, tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture(scope="package")
def drafting(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With Medusa heads and a chat template, for the page."""
    with drafting_service(twin_path, tmp_path_factory.mktemp("page")) as made:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture
def page(chromium: Browser, drafting: Service) -> Iterator[Page]:
    with visit(chromium, drafting) as made:
        yield made
