"""The search page in a real browser: uploads and the microphone, on a desktop and a phone, light and dark."""

from __future__ import annotations

import base64
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
from speechclip.search.serve import make_app  # noqa: E402
from speechclip.search.service import Limits  # noqa: E402

pytestmark = pytest.mark.slow
LIMITS = Limits(seconds=8.0, size=400_000, top_k=6, neighbours=3)


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


@pytest.fixture(scope="module")
def browser(world: World) -> Iterator[Any]:
    """Start a Chromium with a fake microphone that repeats the query."""
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


def upload(watched: Watched, file: Path) -> None:
    watched.page.set_input_files("#file", file)
    until(watched.page, "document.getElementById('status').textContent.includes('images in')")


def assert_no_errors(watched: Watched, address: str) -> None:
    """Check that the console has no error, and that all requests went to the server."""
    assert watched.errors == []
    hosts = {url.split("/")[2] for url in watched.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {address}


def test_page_shows_images_and_keywords_of_an_upload(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    upload(watched, world.query)
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
    for at, word in enumerate(words):  # each band is at the time of its keyword
        assert float(bands.nth(at).get_attribute("x")) == pytest.approx(800 * word["start"] / answer.seconds, abs=0.5)
    until(page, "document.getElementById('audio').readyState >= 1")
    assert page.evaluate("document.getElementById('audio').duration") == pytest.approx(answer.seconds, abs=0.1)
    page.locator("#keywords button").nth(1).focus()
    page.keyboard.press("Enter")  # plays the keyword and marks it
    until(page, "document.querySelector('rect.band[data-word=\"1\"]').classList.contains('marked')")
    assert page.evaluate("document.getElementById('audio').currentTime") >= words[1]["start"] - 0.05
    assert_no_errors(watched, address)


def test_page_searches_with_the_microphone(browser: Any, address: str) -> None:
    watched = opened(browser, address, permissions=["microphone"])
    page = watched.page
    page.click("#record")
    until(page, "document.getElementById('status').textContent.startsWith('Recording')")
    assert page.get_attribute("#record", "aria-pressed") == "true"
    page.wait_for_timeout(2500)
    page.click("#record")
    until(page, "document.getElementById('status').textContent.includes('images in')")
    assert page.locator("#results li").count() == 6
    assert page.locator("#keywords li").count() == 3
    assert page.get_attribute("#record", "aria-pressed") == "false"
    until(page, "document.getElementById('audio').readyState >= 1")
    assert 1 < page.evaluate("document.getElementById('audio').duration") < 8
    assert_no_errors(watched, address)


def test_page_ignores_a_second_click_before_the_permission(browser: Any, address: str) -> None:
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
    until(page, "document.getElementById('status').textContent.startsWith('Recording')")
    assert page.evaluate("[window.asked, document.activeElement.id]") == [1, "record"]
    page.wait_for_timeout(1000)
    page.keyboard.press("Enter")  # the next one stops the recording
    until(page, "document.getElementById('status').textContent.includes('images in')")
    assert_no_errors(watched, address)


def test_page_explains_mistakes(tmp_path: Path, world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    (tmp_path / "notes.wav").write_text("not audio")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(9 * 16000)), 16000)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.sin(np.arange(960)), 16000)
    soundfile.write(tmp_path / "large.wav", 0.1 * np.sin(np.arange(13 * 16000)), 16000)
    for name, reason in (
        ("notes.wav", "No answer: the recording: not readable as audio (Format not recognised)"),
        ("long.wav", "No answer: the recording: 9.0 s long. A query has at most 8 s."),
        ("large.wav", "This file has 0.4 MB. The limit is 0.4 MB."),
        ("short.wav", "No answer: the recording: 0.060 s long. A query has at least 0.2 s."),
    ):
        upload(watched, world.query)
        assert page.is_visible("#found") and page.is_visible("#heard")
        page.set_input_files("#file", tmp_path / name)
        until(page, f"document.getElementById('status').textContent.startsWith({json.dumps(reason)})")
        assert "wrong" in (page.get_attribute("#status", "class") or "")
        assert page.is_hidden("#found") and page.is_hidden("#heard")
    assert all("422" in error for error in watched.errors) and len(watched.errors) == 3  # the browser logs a refusal


def test_page_decodes_formats_that_the_server_cannot_read(tmp_path: Path, browser: Any, address: str) -> None:
    watched = opened(browser, address, permissions=["microphone"])
    page = watched.page
    recorded = page.evaluate("""async () => {
        const recorder = new MediaRecorder(await navigator.mediaDevices.getUserMedia({ audio: true }));
        const part = new Promise((resolve) => { recorder.ondataavailable = (event) => resolve(event.data); });
        recorder.start();
        await new Promise((resolve) => setTimeout(resolve, 2000));
        recorder.stop();
        const bytes = new Uint8Array(await (await part).arrayBuffer());
        return [recorder.mimeType, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))];
    }""")
    assert recorded[0].startswith("audio/webm")
    (tmp_path / "query.webm").write_bytes(base64.b64decode(recorded[1]))
    upload(watched, tmp_path / "query.webm")
    assert page.locator("#results li").count() == 6
    assert_no_errors(watched, address)


def test_page_tries_again_if_the_server_is_busy(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    refusals = iter([True, True])

    def refuse_twice(route: Any) -> None:
        if next(refusals, False):
            route.fulfill(status=503, headers={"Retry-After": "1"}, body='{"error": "too many queries"}')
        else:
            route.continue_()

    page.route("**/search", refuse_twice)
    page.set_input_files("#file", world.query)
    until(page, "document.getElementById('status').textContent === 'Waiting for other queries …'")
    until(page, "document.getElementById('status').textContent.includes('images in')")
    assert page.locator("#results li").count() == 6
    assert len(watched.errors) == 2 and all("503" in error for error in watched.errors)


def test_page_names_a_server_that_stopped(world: World, browser: Any) -> None:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        watched = opened(browser, where)
        upload(watched, world.query)
    watched.page.set_input_files("#file", world.query)
    until(watched.page, "document.getElementById('status').textContent.includes('the server cannot be reached')")
    assert watched.page.is_hidden("#found")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_a_phone_and_has_contrast(world: World, browser: Any, address: str, dark: bool) -> None:
    watched = opened(browser, address, width=390, height=844, dark=dark)
    page = watched.page
    upload(watched, world.query)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = [page.locator(name).first.bounding_box()["height"] for name in ("#record", ".upload", "#keywords button")]
    assert min(heights) >= 44
    colours = page.evaluate(
        "['body', '.quiet', '#record'].map((name) => [getComputedStyle(document.querySelector(name)).color,"
        " getComputedStyle(name === '.quiet' ? document.body : document.querySelector(name)).backgroundColor])"
    )
    assert [_contrast(*pair) >= 4.5 for pair in colours] == [True, True, True]  # WCAG 2.1, 1.4.3
    assert (_luminance(colours[0][1]) < 0.1) == dark
    assert_no_errors(watched, address)


def _luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [int(part) / 255 for part in colour.strip("rgb()").split(", ")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
