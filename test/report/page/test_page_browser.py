"""The pages in a headless browser: a page of 1,000 utterances, and a page of two runs.

Without a browser the tests are skipped, with the reason. Every error that the browser logs fails a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Watched, open_page
from scored_runs import KEYWORDS, scored_data, scored_run

pytestmark = [pytest.mark.slow, pytest.mark.browser]

UTTERANCES = 1000
LOAD_SECONDS = 2.0
WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = scored_data(tmp_path_factory.mktemp("recipes") / "mini", images=UTTERANCES // 5, each=5)
    scored_run(folder, "tiny_parallel", noise=0.5)
    scored_run(folder, "tiny_cascaded", noise=2.0)
    return folder


def _report(*words: str | Path) -> Path:
    """Run ``speechclip report`` as a user does, and return the page."""
    command = [sys.executable, "-m", "speechclip.cli", "report", *map(str, words)]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.splitlines()[-1].removeprefix("wrote "))


@pytest.fixture(scope="module")
def page_file(recipe: Path) -> Path:
    return _report(recipe / "exp" / "tiny_cascaded")


@contextmanager
def _opened(browser: Any, file: Path | None = None, size: str = "desk", dark: bool = False) -> Iterator[Watched]:
    """Open a page in a new tab. At the end, only the file was requested, and no error was logged."""
    tab = open_page(browser, width=WIDTHS[size], dark=dark)
    tab.page.set_default_timeout(90_000)
    if file is not None:
        tab.page.goto(file.as_uri())
    yield tab
    asked = {address for address in tab.requests if not address.startswith("data:")}
    assert len(asked) == 1 and next(iter(asked)).startswith("file:")
    assert tab.errors == [] and tab.failed == []
    tab.page.context.close()


def _until(page: Any, condition: str, seconds: float = 90.0) -> None:
    """Wait for a condition in the page. The wait of playwright needs eval, which the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(50)


def _see_everything(page: Any) -> None:
    """Unfold and scroll through the page, so that all images and recordings are loaded."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.evaluate(
        """async () => {
            for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
                window.scrollTo({ top: y, behavior: "instant" });
                await new Promise((next) => requestAnimationFrame(() => setTimeout(next, 20)));
            }
            window.scrollTo({ top: 0, behavior: "instant" });
        }"""
    )


def test_page_of_1000_utterances_loads_in_2_seconds(browser: Any, page_file: Path) -> None:
    used, waited = [], []
    for _ in range(3):
        with _opened(browser) as tab:
            page = tab.page
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(page_file.as_uri())
            metrics = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
            used.append(metrics["TaskDuration"])
            waited.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            assert page.locator("#list li").count() == UTTERANCES
    print(f"{page_file.stat().st_size / 1e6:.1f} MB: {min(waited):.2f} s, {min(used):.2f} s of CPU time")
    # CPU time does not depend on other work on the machine. On an idle machine, the clock is checked, too.
    assert min(used) < LOAD_SECONDS
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        assert min(waited) < LOAD_SECONDS


def test_page_loads_all_images_and_recordings(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file) as tab:
        page = tab.page
        _see_everything(page)
        count = page.locator("[data-audio]").count()
        assert page.evaluate(_PLAYABLE) == count > 30
        _until(page, "[...document.images].every((one) => one.complete && one.naturalWidth > 0 && one.alt.length > 0)")
        assert page.locator("img").count() > 50


def test_small_buttons_play_one_recording_at_a_time(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file) as tab:
        page = tab.page
        buttons = "[...document.querySelectorAll('[data-audio]')]"
        pressed = f"{buttons}.map((one) => one.getAttribute('aria-pressed') === 'true')"
        small = page.locator("#overview [data-audio], #gallery details[open] [data-audio]")
        small.nth(0).focus()
        page.keyboard.press("Enter")
        _until(page, f"{pressed}.filter(Boolean).length === 1 && {pressed}[0]")
        small.nth(1).click()
        _until(page, f"{pressed}.filter(Boolean).length === 1 && !{pressed}[0]")
        _until(page, f"{pressed}.every((one) => !one)")  # at its end
        row = page.locator("#list li:has(.play)").nth(1)
        row.locator(".play").click()
        assert row.get_attribute("aria-selected") == "true"
        _until(page, "document.querySelector('#panel audio').currentTime > 0.05")


def test_navigation_marks_the_section(browser: Any, page_file: Path) -> None:
    for size in WIDTHS:
        with _opened(browser, page_file, size) as tab:
            page = tab.page
            now = "[...document.querySelectorAll('nav a[aria-current]')].map((one) => one.getAttribute('href')).join()"
            assert page.evaluate(now) == "#overview"
            for section in ("utterances", "keywords", "commands", "overview"):
                page.evaluate(f"document.getElementById('{section}').scrollIntoView({{ behavior: 'instant' }})")
                _until(page, f"{now} === '#{section}'")
                inside = "(() => { const one = document.querySelector('nav a[aria-current]').getBoundingClientRect();"
                assert page.evaluate(f"{inside} return one.left >= 0 && one.right <= innerWidth; }})()")


def test_first_column_stays_on_a_phone(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file, "phone") as tab:
        page = tab.page
        table = page.locator("#retrieval .scroll").first
        left = table.locator("tbody th").first.bounding_box()["x"]
        table.evaluate("(one) => { one.scrollLeft = 200; }")
        assert table.evaluate("(one) => one.scrollLeft") == 200
        assert table.locator("tbody th").first.bounding_box()["x"] == pytest.approx(left, abs=1)
        on_top = "(one) => { const box = one.getBoundingClientRect();" + (
            " return one.contains(document.elementFromPoint(box.right - 4, box.top + box.height / 2)); }"
        )
        table.scroll_into_view_if_needed()
        assert table.locator("tbody th").first.evaluate(on_top)


def test_click_shows_keywords_and_plays(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file) as tab:
        page = tab.page
        page.select_option("#order", "audio")
        row = page.locator("#list li").nth(3)
        name = row.locator("small span").first.text_content()
        row.click()
        assert page.locator("#panel h3").text_content() == name
        assert row.get_attribute("aria-selected") == "true"
        keywords = page.locator("#panel .kw")
        assert keywords.count() == KEYWORDS
        assert page.locator("#panel .spec path").count() == KEYWORDS
        assert page.locator("#panel .kw canvas").count() == KEYWORDS
        keywords.nth(1).click()
        assert [keywords.nth(at).get_attribute("aria-pressed") for at in range(3)] == ["false", "true", "false"]
        assert page.locator("#panel .detail tbody tr").count() == 5
        assert "Keyword 2" in (page.locator("#panel .detail caption").text_content() or "")
        _until(page, "document.querySelector('#panel audio').readyState >= 2")
        page.evaluate("document.querySelector('#panel audio').play()")
        _until(page, "document.querySelector('#panel audio').currentTime > 0.05")


def test_page_works_with_the_keyboard(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file) as tab:
        page = tab.page
        title = page.locator("#panel h3")
        names = [page.locator("#list li").nth(at).locator("small span").first.text_content() for at in (0, 1, 999)]
        page.focus("#list")
        assert title.text_content() == names[0]
        page.keyboard.press("ArrowDown")
        assert title.text_content() == names[1]
        page.keyboard.press("End")
        assert title.text_content() == names[2]
        inside = """() => {
            const list = document.getElementById("list"), frame = list.getBoundingClientRect();
            const row = document.getElementById(list.getAttribute("aria-activedescendant")).getBoundingClientRect();
            return frame.top <= row.top && row.bottom <= frame.bottom + 1;
        }"""
        assert page.evaluate(inside)
        page.locator("#panel .kw").nth(2).focus()
        page.keyboard.press("Enter")
        assert page.locator("#panel .kw").nth(2).get_attribute("aria-pressed") == "true"
        page.focus("#map")
        before = page.locator("#map-text").text_content()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator("#map-text").text_content() != before
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "list"
        page.fill("#filter", "no such caption")
        assert page.locator("#list li").count() == 0
        assert page.locator("#count").text_content() == "0 shown"
        assert page.inner_text("#empty").startswith("No caption or id contains this text.")
        assert page.is_visible("#empty") and page.is_hidden("#list")
        page.locator("#clear").focus()
        page.keyboard.press("Enter")
        assert page.locator("#list li").count() == UTTERANCES and page.evaluate("document.activeElement.id") == "filter"


def test_click_on_the_map_opens_an_utterance(browser: Any, page_file: Path) -> None:
    with _opened(browser, page_file) as tab:
        page = tab.page
        page.locator("#map").scroll_into_view_if_needed()
        before = page.locator("#panel h3").text_content()
        box = page.locator("#map").bounding_box()
        page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 0.6 * box["height"])
        after = page.locator("#panel h3").text_content()
        assert after != before and (page.locator("#map-text").text_content() or "").startswith(f"{after}: ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_a_phone_and_has_contrast(browser: Any, page_file: Path, dark: bool) -> None:
    with _opened(browser, page_file, "phone", dark) as tab:
        page = tab.page
        _see_everything(page)
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS["phone"]
        wide = page.evaluate(
            """[...document.querySelectorAll('section, .panel, #list, audio, .map canvas')]
                .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
                .map((one) => one.id || one.tagName)"""
        )
        assert wide == []
        contrast = page.evaluate(_CONTRAST)
        assert contrast["text"] >= 7 and contrast["muted"] >= 4.5 and contrast["accent"] >= 4.5
        assert (contrast["ground"] < 0.1) == dark


_PLAYABLE = """async () => {  // the number of buttons whose recording can be decoded
    const all = JSON.parse(document.getElementById("media").textContent).audio;
    const load = (uri) => new Promise((done) => {
        const audio = new Audio(uri);
        audio.addEventListener("loadedmetadata", () => done(audio.duration > 0.2));
        audio.addEventListener("error", () => done(false));
    });
    const playable = {};
    for (const [place, uri] of Object.entries(all)) playable[place] = await load(uri);
    return [...document.querySelectorAll("[data-audio]")].filter((one) => playable[one.dataset.audio]).length;
}"""


_CONTRAST = """() => {  // contrast of text colours with their background (WCAG 2)
    const light = (name) => {
        const probe = document.createElement("i");
        probe.style.color = `var(${name})`;
        document.body.append(probe);
        const [red, green, blue] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((part) => {
            const value = part / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        probe.remove();
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = light("--surface");
    const against = (name) => {
        const value = light(name);
        return (Math.max(value, ground) + 0.05) / (Math.min(value, ground) + 0.05);
    };
    return { ground, text: against("--text"), muted: against("--muted"), accent: against("--accent") };
}"""


_CUT_OFF = """[...document.querySelectorAll('#scores .scroll')].filter((one) => one.scrollWidth > one.clientWidth)
    .map((one) => `${one.getAttribute('aria-label')}: ${one.scrollWidth} in ${one.clientWidth}`)"""


@pytest.mark.parametrize("other", ["tiny_parallel", "tiny_cascaded_with-a-long-tag_seed1"])
def test_comparison_page_in_a_browser(browser: Any, recipe: Path, other: str) -> None:
    if not (recipe / "exp" / other).exists():
        scored_run(recipe, other, noise=1.0, seed=1)
    file = _report(recipe / "exp" / "tiny_cascaded", recipe / "exp" / other, "--permutations", "200")
    for size in WIDTHS:
        with _opened(browser, file, size) as tab:
            page = tab.page
            _see_everything(page)
            assert page.evaluate(_PLAYABLE) == page.locator("[data-audio]").count() >= 4
            _until(page, "[...document.images].every((one) => one.naturalWidth > 0)")
            assert page.locator("section").count() == 4
            # on a desktop all columns are visible; on a phone some tables scroll
            assert size == "phone" or page.evaluate(_CUT_OFF) == []
            assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[size]
