"""The page in a real browser: a real recording uploaded and spoken, on a desktop and a phone, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from asking import World, serving
from browser import Watched, chromium, open_page, until

pytest.importorskip("starlette", reason="extra 'search' is not installed")
pytest.importorskip("uvicorn", reason="extra 'search' is not installed")

from speechclip.search.query import ask  # noqa: E402
from speechclip.search.serve import Limits, make_app  # noqa: E402

pytestmark = pytest.mark.slow
LIMITS = Limits(seconds=8.0, size=400_000, top_k=6, neighbours=3)


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


@pytest.fixture(scope="module")
def browser(world: World) -> Iterator[Any]:
    """A Chromium whose microphone hears the query, over and over."""
    samples, rate = soundfile.read(world.query)
    spoken = world.folder / "microphone.wav"
    soundfile.write(spoken, samples, rate, subtype="PCM_16")
    with chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
    ) as opened:
        yield opened


def opened(browser: Any, address: str, **options: Any) -> Watched:
    watched = open_page(browser, **options)
    watched.page.set_default_timeout(120_000)
    watched.page.goto(f"http://{address}/")
    watched.page.wait_for_selector("body[data-ready]")
    return watched


def asked(watched: Watched, file: Path) -> None:
    watched.page.set_input_files("#file", file)
    until(watched.page, "document.getElementById('status').textContent.includes('images in')")


def assert_quiet(watched: Watched, address: str) -> None:
    """No error on the console, and nothing asked of any other host."""
    assert watched.errors == []
    hosts = {url.split("/")[2] for url in watched.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {address}


def test_an_uploaded_recording_shows_images_keywords_and_where(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    asked(watched, world.query)
    answer = ask(world.model, world.index, world.query, top_k=6)
    assert page.locator("#results .id").all_inner_texts() == [hit.id for hit in answer.hits]
    assert page.locator("#results .time").all_inner_texts() == [f"{round(hit.cosine, 4):.3f}" for hit in answer.hits]
    until(page, "[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert all(page.locator("#results img").nth(at).get_attribute("alt") for at in range(6))
    words = answer.as_dict()["keywords"]
    assert page.locator("#keywords .word").all_inner_texts() == [word["subwords"][0] for word in words]
    times = [f"{word['start']:.2f}–{word['end']:.2f} s" for word in words]
    assert page.locator("#keywords .time").all_inner_texts() == times
    bands = page.locator("rect.band")
    assert bands.count() == len(words)
    for at, word in enumerate(words):  # each band lies where its keyword was heard
        assert float(bands.nth(at).get_attribute("x")) == pytest.approx(800 * word["start"] / answer.seconds, abs=0.5)
    until(page, "document.getElementById('audio').readyState >= 1")
    assert page.evaluate("document.getElementById('audio').duration") == pytest.approx(answer.seconds, abs=0.1)
    page.locator("#keywords button").nth(1).focus()
    page.keyboard.press("Enter")  # plays the stretch and marks it
    until(page, "document.querySelector('rect.band[data-word=\"1\"]').classList.contains('marked')")
    assert page.evaluate("document.getElementById('audio').currentTime") >= words[1]["start"] - 0.05
    assert_quiet(watched, address)


def test_what_is_spoken_is_recorded_and_searched(browser: Any, address: str) -> None:
    watched = opened(browser, address, permissions=["microphone"])
    page = watched.page
    page.click("#record")
    until(page, "document.getElementById('status').textContent.startsWith('Listening')")
    assert page.get_attribute("#record", "aria-pressed") == "true"
    page.wait_for_timeout(2500)
    page.click("#record")
    until(page, "document.getElementById('status').textContent.includes('images in')")
    assert page.locator("#results li").count() == 6
    assert page.locator("#keywords li").count() == 3
    assert page.get_attribute("#record", "aria-pressed") == "false"
    until(page, "document.getElementById('audio').readyState >= 1")
    assert 1 < page.evaluate("document.getElementById('audio').duration") < 8
    assert_quiet(watched, address)


def test_a_second_click_while_the_microphone_is_asked_for_records_once(browser: Any, address: str) -> None:
    watched = open_page(browser, permissions=["microphone"])
    page = watched.page
    page.add_init_script("""
        window.asked = 0;
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wanted) => {
            window.asked += 1;
            await new Promise((allow) => { window.allow = allow; });
            return ask(wanted);
        };
    """)
    page.goto(f"http://{address}/")
    page.wait_for_selector("body[data-ready]")
    page.focus("#record")
    page.keyboard.press("Enter")
    until(page, "window.asked === 1")
    page.evaluate("document.getElementById('record').click()")
    page.evaluate("window.allow()")
    until(page, "document.getElementById('status').textContent.startsWith('Listening')")
    assert page.evaluate("[window.asked, document.activeElement.id]") == [1, "record"]
    page.wait_for_timeout(1000)
    page.keyboard.press("Enter")  # and the next one stops it
    until(page, "document.getElementById('status').textContent.includes('images in')")
    assert_quiet(watched, address)


def test_mistakes_are_told_on_the_page(tmp_path: Path, world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    (tmp_path / "notes.wav").write_text("not audio")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(9 * 16000)), 16000)
    soundfile.write(tmp_path / "large.wav", 0.1 * np.sin(np.arange(13 * 16000)), 16000)
    for name, reason in (
        ("notes.wav", "No answer: the recording: not readable as audio (Format not recognised). Convert the file to wav or flac."),
        ("long.wav", "No answer: the recording: 9.0 s long, a query may have 8 s"),
        ("large.wav", "This file has 0.4 MB, 0.4 MB are the most."),
    ):
        page.set_input_files("#file", tmp_path / name)
        until(page, f"document.getElementById('status').textContent === {json.dumps(reason)}")
        assert "wrong" in (page.get_attribute("#status", "class") or "")
        assert page.is_hidden("#found")
    asked(watched, world.query)  # and it goes on
    assert page.locator("#results li").count() == 6
    assert all("422" in error for error in watched.errors) and len(watched.errors) == 2  # the browser notes a refusal


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(world: World, browser: Any, address: str, dark: bool) -> None:
    watched = opened(browser, address, width=390, height=844, dark=dark)
    page = watched.page
    asked(watched, world.query)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = [page.locator(name).first.bounding_box()["height"] for name in ("#record", ".upload", "#keywords button")]
    assert min(heights) >= 44
    colours = page.evaluate(
        "['body', '.quiet', '#record'].map((name) => [getComputedStyle(document.querySelector(name)).color,"
        " getComputedStyle(name === '.quiet' ? document.body : document.querySelector(name)).backgroundColor])"
    )
    assert [_contrast(*pair) >= 4.5 for pair in colours] == [True, True, True]  # WCAG 2.1, 1.4.3
    assert (_luminance(colours[0][1]) < 0.1) == dark
    assert_quiet(watched, address)


def _luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [int(part) / 255 for part in colour.strip("rgb()").split(", ")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
