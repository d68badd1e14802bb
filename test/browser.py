"""A headless Chromium for tests, and a record of the errors and requests of a page."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def demo_query() -> Path:
    """Return a spoken query of the demo."""
    return next(iter(sorted((Path(__file__).parents[1] / "egs/mini/models/demo/queries").glob("*.flac"))))


def find_chromium() -> str:
    """Return the path of $SPEECHCLIP_CHROMIUM or of the system's browser. Skip the test if both are missing."""
    pytest.importorskip("playwright.sync_api", reason="extra 'dev' is not installed: no playwright")
    candidates = [os.environ.get("SPEECHCLIP_CHROMIUM", ""), *NAMES]
    found = next(filter(None, map(shutil.which, filter(None, candidates))), None)
    if found is None:
        pytest.skip(f"no browser: none of {' '.join(NAMES)} is installed (apt-get install chromium)")
    return found


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """Start a headless Chromium with further command-line flags. Skip the test if no browser is installed."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox does not work for root in a container. Only pages of the tests are opened.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page with a record of its activity.

    Attributes:
        page: the page.
        errors: errors that it logged or threw.
        requests: addresses that it requested.
        failed: requests that failed.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def open_page(browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, **context: Any) -> Watched:
    """Open a new page in a new context. ``context`` holds further options of playwright."""
    options: dict[str, Any] = {"viewport": {"width": width, "height": height}, **context}
    page = browser.new_context(color_scheme="dark" if dark else "light", **options).new_page()
    watched = Watched(page)
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("requestfailed", lambda request: watched.failed.append(f"{request.url}: {request.failure}"))
    return watched


def until(page: Page, expression: str, seconds: float = 120.0) -> None:
    """Wait until a JavaScript expression is true. Playwright's own wait needs eval, which a page may forbid (CSP)."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {expression}; the page shows {page.inner_text('body')[:300]!r}")
        page.wait_for_timeout(50)
