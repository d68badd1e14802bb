"""A real headless Chromium for tests, with what a page logs and asks for."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str:
    """The browser of the system ($SPEECHCLIP_CHROMIUM goes first), or skip the test with the reason."""
    pytest.importorskip("playwright.sync_api", reason="extra 'dev' is not installed: no playwright")
    candidates = [os.environ.get("SPEECHCLIP_CHROMIUM", ""), *NAMES]
    found = next(filter(None, map(shutil.which, filter(None, candidates))), None)
    if found is None:
        pytest.skip(f"no browser: none of {' '.join(NAMES)} is installed (apt-get install chromium)")
    return found


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A headless Chromium, with further command-line flags. Skips the test where there is none."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # the sandbox wants rights that root in a container has not; only pages of the tests are opened
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page and what it did: errors it logged or threw, addresses it asked for and those that failed."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def open_page(browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, **context: Any) -> Watched:
    """A new page of its own context, watched from the start; ``context``: further options of playwright's."""
    options: dict[str, Any] = {"viewport": {"width": width, "height": height}, **context}
    page = browser.new_context(color_scheme="dark" if dark else "light", **options).new_page()
    watched = Watched(page)
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("requestfailed", lambda request: watched.failed.append(f"{request.url}: {request.failure}"))
    return watched


def until(page: Page, expression: str, seconds: float = 120.0) -> None:
    """Wait until a JavaScript expression holds. playwright's own waiting needs eval, which a page may forbid (CSP)."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {expression}; the page shows {page.inner_text('body')[:300]!r}")
        page.wait_for_timeout(50)
