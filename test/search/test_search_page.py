"""The search page in a real browser: every kind of query, the player and the results, on a desktop and a phone."""

from __future__ import annotations

import base64
import copy
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from asking import World, serving, with_recordings
from browser import Watched, open_page, until

pytest.importorskip("starlette", reason="extra 'search' is not installed")
pytest.importorskip("uvicorn", reason="extra 'search' is not installed")

from speechclip.common.errors import UserError  # noqa: E402
from speechclip.data.audio import load_audio  # noqa: E402
from speechclip.search.export import HIT_COLUMNS  # noqa: E402
from speechclip.search.query import ask  # noqa: E402
from speechclip.search.serve import make_app  # noqa: E402
from speechclip.search.service import Limits  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.browser]
LIMITS = Limits(seconds=8.0, size=400_000, top_k=6, neighbours=3)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ANSWERED = "document.getElementById('status').textContent.includes('results in')"


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


def opened(browser: Any, address: str, size: str = "desktop", path: str = "/", **options: Any) -> Watched:
    width, height = SIZES[size]
    watched = open_page(browser, width=width, height=height, **options)
    watched.page.set_default_timeout(120_000)
    watched.page.goto(f"http://{address}{path}")
    watched.page.wait_for_selector("body[data-ready]")
    return watched


def upload(watched: Watched, file: Path) -> None:
    watched.page.set_input_files("#file", file)
    until(watched.page, ANSWERED)


def names(page: Any) -> list[str]:
    """Return folder and name of the results, as a reader sees them."""
    return list(page.evaluate("[...document.querySelectorAll('.hit .name')].map((one) => one.textContent)"))


def assert_no_errors(watched: Watched, address: str) -> None:
    """Check that the console has no error, that all requests went to the server, and that no text says "head"."""
    assert watched.errors == []
    hosts = {url.split("/")[2] for url in watched.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {address}
    assert not re.search(r"\bheads?\b", watched.page.evaluate("document.body.textContent"))


def test_page_shows_the_answer_to_an_upload(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    upload(watched, world.query)
    answer = ask(world.model, world.index, world.query, top_k=6)
    assert names(page) == [hit.id for hit in answer.hits]
    assert page.locator("#results .time").all_inner_texts() == [f"{round(hit.cosine, 4):.3f}" for hit in answer.hits]
    bars = page.evaluate(
        "[...document.querySelectorAll('#results .track i')].map((one) => parseFloat(one.style.width))"
    )
    assert bars == pytest.approx([100 * max(0, hit.cosine) for hit in answer.hits], abs=0.1)
    until(page, "[...document.images].every((image) => image.complete && image.naturalWidth > 0 && image.alt)")
    words = answer.as_dict()["keywords"]
    first = [word["subwords"][0] for word in words]
    assert page.locator("#keywords .word").all_inner_texts() == first
    times = [f"{word['start']:.2f}–{word['end']:.2f} s" for word in words]
    assert page.locator("#keywords .time").all_inner_texts() == times
    for at, word in enumerate(words):  # each band has the word, is at its time, and has the colour of the list
        band = page.locator(f".band[data-word='{at}']")
        assert band.inner_text() == word["subwords"][0]
        left = float(band.evaluate("(one) => parseFloat(one.style.left)"))
        assert left == pytest.approx(100 * word["start"] / answer.seconds, abs=0.1)
    colours = page.evaluate("""['.band', '.swatch'].map((name) => [...document.querySelectorAll(name)]
        .sort((a, b) => (a.dataset.word ?? 0) - (b.dataset.word ?? 0))
        .map((one) => getComputedStyle(one).backgroundColor))""")
    assert colours[0] == colours[1] and len(set(colours[0])) == len(words)
    assert_no_errors(watched, address)


def test_waveform_is_the_player(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    upload(watched, world.query)
    seconds = ask(world.model, world.index, world.query).seconds
    until(page, "document.getElementById('audio').readyState >= 2")
    now = "document.getElementById('audio').currentTime"
    box = page.locator("#wave").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 10)
    assert page.evaluate(now) == pytest.approx(seconds / 2, abs=0.05)
    until(page, "parseFloat(document.getElementById('playhead').style.left) > 49")
    page.focus("#wave")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(now) == pytest.approx(0.5, abs=0.05)
    page.keyboard.press(" ")
    until(page, f"!document.getElementById('audio').paused && {now} > 0.6")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.keyboard.press(" ")
    until(page, "document.getElementById('audio').paused")
    assert float(page.get_attribute("#wave", "aria-valuenow") or 0) == pytest.approx(page.evaluate(now), abs=0.1)
    page.locator("#keywords button").nth(1).focus()
    page.keyboard.press("Enter")  # plays the keyword, marks it, and stops at its end
    word = ask(world.model, world.index, world.query).as_dict()["keywords"][1]
    until(page, f"document.getElementById('audio').paused && {now} >= {min(word['end'], seconds) - 0.1}")
    assert page.evaluate(now) < word["end"] + 0.4
    assert "marked" in (page.get_attribute(".band[data-word='1']", "class") or "")
    assert_no_errors(watched, address)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_works_with_the_keyboard_alone(browser: Any, address: str, size: str, dark: bool) -> None:
    watched = opened(browser, address, size, dark=dark, permissions=["microphone"])
    page = watched.page
    active = "document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(active) == "record"
    page.keyboard.press("Enter")
    until(page, "Number(document.getElementById('level').getAttribute('aria-valuenow')) > 20")  # somebody speaks
    assert re.fullmatch(r"[78] s left", page.inner_text("#remaining"))
    assert page.get_attribute("#record", "aria-pressed") == "true"
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    until(page, ANSWERED)
    assert page.get_attribute("#record", "aria-pressed") == "false" and page.is_hidden("#recording")
    assert page.locator("#results li").count() == 6 and page.locator("#keywords li").count() == 3
    until(page, "document.getElementById('audio').readyState >= 1")
    assert 1 < page.evaluate("document.getElementById('audio').duration") < 8
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').textContent === 'Recording …'")
    page.keyboard.press("Escape")
    until(page, "document.getElementById('status').textContent === 'Cancelled.'")
    assert page.is_hidden("#found")
    page.keyboard.press("Tab")
    assert page.evaluate(active) == "text"
    page.keyboard.type("a red boat")
    page.keyboard.press("Enter")
    until(page, ANSWERED)
    assert page.inner_text("#asked") == "a red boat" and page.is_hidden("#player")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "hit":
            break
    page.keyboard.press("Enter")
    until(page, "document.getElementById('dialog').open")
    found = names(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#dialog-folder") + page.inner_text("#dialog-name") == found[1]
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # the last result stays
    assert page.inner_text("#dialog-rank") == "6"
    page.keyboard.press("Escape")
    until(page, f"document.activeElement.title === {json.dumps('Picture ' + found[5])}")  # the focus is back
    assert not page.evaluate("document.getElementById('dialog').open")
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    assert_no_errors(watched, address)


def test_dialog_copies_finds_similar_and_exports(world: World, browser: Any, address: str, tmp_path: Path) -> None:
    watched = opened(browser, address, permissions=["clipboard-read", "clipboard-write"])
    page = watched.page
    page.fill("#text", "a boat")
    page.click("#typed button")
    until(page, ANSWERED)
    found = names(page)
    for name in ("json", "csv"):
        with page.expect_download() as download:
            page.click(f"#export-{name}")
        download.value.save_as(tmp_path / f"results.{name}")
    exported = json.loads((tmp_path / "results.json").read_text())[0]
    assert set(exported) == {"query", "seconds", "results", "keywords", "encode_ms", "search_ms"}
    assert exported["query"] == "a boat" and [entry["id"] for entry in exported["results"]] == found
    files = [world.index.files[world.index.ids.index(name)] for name in found]
    assert [entry["file"] for entry in exported["results"]] == files
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(HIT_COLUMNS)  # as speechclip search --export
    assert [row["id"] for row in rows] == found and [row["file"] for row in rows] == files
    page.locator(".hit").nth(2).click()
    until(page, "document.querySelector('#dialog-item img').naturalWidth > 0")
    page.click("#dialog-copy")
    until(page, "document.getElementById('dialog-note').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == files[2]
    page.click("#dialog-like")
    until(page, "document.getElementById('asked').textContent.startsWith('Similar to')")
    assert not page.evaluate("document.getElementById('dialog').open")
    assert page.inner_text("#asked b") == found[2]
    assert page.evaluate("document.activeElement.className") == "hit"
    assert_no_errors(watched, address)


def test_page_plays_recordings_that_were_found(world: World, browser: Any) -> None:
    with serving(make_app(world.model, with_recordings(world), LIMITS)) as where:
        watched = opened(browser, where, "phone")
        page = watched.page
        assert "6 pictures and 2 recordings can be searched." in page.inner_text("#about")
        upload(watched, world.query)
        assert page.locator("#results h3").all_inner_texts() == ["Pictures", "Recordings"]
        assert page.locator("#results .when").all_inner_texts()[-2:] == ["0.0 s – 1.0 s", "1.3 s – 2.0 s"]
        assert names(page)[-1] == "talks/query.flac"
        page.locator(".hit", has_text=world.index.ids[0].split("/")[-1]).click()
        assert page.inner_text("#dialog-same") == "The same content: copy.png"
        page.keyboard.press("Escape")
        page.locator(".hit").last.click()
        assert page.is_hidden("#dialog-same")
        assert page.inner_text(".place") == "2 of 2"
        until(page, "document.querySelector('#dialog-item audio').readyState >= 1")
        assert page.evaluate("document.querySelector('#dialog-item audio').duration") == pytest.approx(0.75, abs=0.01)
        page.evaluate("document.querySelector('#dialog-item audio').play()")
        until(page, "document.querySelector('#dialog-item audio').ended")
        page.locator("#dialog-like").click()
        until(page, "document.getElementById('asked').textContent.startsWith('Similar to')")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert_no_errors(watched, where)


def drop(page: Any, file: Path, kind: str) -> None:
    """Drop a file on the heading of the page."""
    content = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(
        """([content, name, type]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            for (const event of ["dragenter", "dragover", "drop"]) {
                const options = { dataTransfer, bubbles: true, cancelable: true };
                document.querySelector("h1").dispatchEvent(new DragEvent(event, options));
                if (event === "dragenter") window.seen = !document.getElementById("drop").hidden;
            }
        }""",
        [content, file.name, kind],
    )


def test_page_accepts_drops_everywhere(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    drop(page, world.query, "audio/flac")
    assert page.evaluate("window.seen") and page.is_hidden("#drop")
    until(page, ANSWERED)
    assert page.is_visible("#player")
    drop(page, Path(world.index.files[0]), "image/png")
    until(page, "document.querySelector('#asked img')?.naturalWidth > 0")
    assert names(page)[0] == world.index.ids[0] and page.is_hidden("#player")
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
    until(page, ANSWERED)
    assert_no_errors(watched, address)


def test_page_explains_mistakes(tmp_path: Path, world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    (tmp_path / "notes.wav").write_text("not audio")
    (tmp_path / "notes.png").write_text("not a picture")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(9 * 16000)), 16000)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.sin(np.arange(960)), 16000)
    soundfile.write(tmp_path / "large.wav", 0.1 * np.sin(np.arange(13 * 16000)), 16000)
    for name, reason in (
        ("notes.wav", "The recording: not readable as audio (Format not recognised)"),
        ("notes.png", "The picture: "),
        ("long.wav", "The recording: 9.0 s long. A query has at most 8 s. Speak again, or choose another recording."),
        ("large.wav", "This file has 0.4 MB. The limit is 0.4 MB. Choose a smaller one."),
        ("short.wav", "The recording: 0.060 s long. A query has at least 0.2 s. Speak again, or choose"),
    ):
        upload(watched, world.query)
        assert page.is_visible("#found") and page.is_visible("#heard")
        page.set_input_files("#file", tmp_path / name)
        until(page, f"document.getElementById('status').textContent.startsWith({json.dumps(reason)})")
        assert "wrong" in (page.get_attribute("#status", "class") or "")
        assert page.is_hidden("#found") and page.is_hidden("#heard") and page.locator("#results li").count() == 0
    assert all("422" in error for error in watched.errors) and len(watched.errors) == 4  # the browser logs a refusal
    upload(watched, world.query)
    page.evaluate("document.getElementById('text').value = ' '")
    page.click("#typed button")
    assert page.inner_text("#status") == "The text is empty. Type some words." and page.is_hidden("#found")


@pytest.mark.parametrize(("name", "reason"), [
    ("NotAllowedError", "The browser does not allow the microphone. Allow it next to the address"),
    ("NotFoundError", "No microphone was found. Connect one, or choose a file."),
])  # fmt: skip
def test_page_explains_a_missing_microphone(browser: Any, address: str, name: str, reason: str) -> None:
    page = opened(browser, address).page
    page.evaluate(
        "(name) => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('x', name); }; }", name
    )
    page.click("#record")
    until(page, f"document.getElementById('status').textContent.startsWith({json.dumps(reason)})")


def recorded_as(page: Any, kind: str) -> bytes:
    """Return two seconds of the fake microphone in a format of the browser's recorder."""
    encoded = page.evaluate(
        """async (kind) => {
        const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
        const recorder = new MediaRecorder(stream, { mimeType: kind });
        const part = new Promise((resolve) => { recorder.ondataavailable = (event) => resolve(event.data); });
        recorder.start();
        await new Promise((resolve) => setTimeout(resolve, 2000));
        recorder.stop();
        const bytes = new Uint8Array(await (await part).arrayBuffer());
        return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    }""",
        kind,
    )
    return base64.b64decode(encoded)


@pytest.mark.parametrize(
    ("name", "kind", "start"),
    [
        ("query.webm", "audio/webm", b"\x1a\x45\xdf\xa3"),
        ("query.m4a", "audio/mp4;codecs=opus", b"ftyp"),
        ("voice_memo.m4a", "", b"ftypM4A"),
    ],
)
def test_page_decodes_formats_that_the_server_cannot_read(
    tmp_path: Path, browser: Any, address: str, name: str, kind: str, start: bytes
) -> None:
    """voice_memo.m4a has AAC, as phones record it: two seconds of a demo query, encoded with FFmpeg (PyAV 18.1)."""
    watched = opened(browser, address, permissions=["microphone"])
    page = watched.page
    if not kind and not page.evaluate("document.createElement('audio').canPlayType('audio/mp4; codecs=mp4a.40.2')"):
        pytest.skip("this Chromium is built without AAC")
    path = tmp_path / name if kind else Path(__file__).with_name(name)
    if kind:
        path.write_bytes(recorded_as(page, kind))
    assert start in path.read_bytes()[:12]
    with pytest.raises(UserError, match="Format not recognised"):
        load_audio(path)
    with page.expect_response("**/search") as answered:
        upload(watched, path)
    assert page.locator("#results li").count() == 6
    assert abs(answered.value.json()["seconds"] - 2) < 0.3
    assert_no_errors(watched, address)


def test_page_tries_again_and_can_be_cancelled(world: World, browser: Any, address: str) -> None:
    watched = opened(browser, address)
    page = watched.page
    refusals = iter([True, True])

    def refuse(route: Any) -> None:
        if next(refusals, False):
            route.fulfill(status=503, headers={"Retry-After": "1"}, body='{"error": "too many queries"}')
        else:
            route.continue_()

    page.route("**/search", refuse)
    page.set_input_files("#file", world.query)
    until(page, "document.getElementById('status').textContent === 'Waiting for other queries …'")
    until(page, ANSWERED)
    assert page.locator("#results li").count() == 6
    assert len(watched.errors) == 2 and all("503" in error for error in watched.errors)
    page.unroute("**/search")
    page.route("**/search", lambda route: None)  # no answer
    page.set_input_files("#file", world.query)
    until(page, "document.getElementById('status').textContent === 'Searching …'")
    page.keyboard.press("Escape")
    until(page, "document.getElementById('status').textContent === 'Cancelled.'")
    assert page.get_attribute("body", "aria-busy") is None


def test_page_names_a_server_that_stopped(world: World, browser: Any) -> None:
    with serving(make_app(world.model, world.index, LIMITS, path_prefix="/voice")) as where:
        watched = opened(browser, where, path="/voice/")
        upload(watched, world.query)
        until(watched.page, "[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    watched.page.set_input_files("#file", world.query)
    until(
        watched.page, "document.getElementById('status').textContent.startsWith('The server cannot be reached. Start')"
    )
    assert watched.page.is_hidden("#found")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_a_phone_and_has_contrast(world: World, browser: Any, dark: bool) -> None:
    index = copy.copy(world.index)
    index.ids = [
        f"a folder with a long name/{number}/{'long_' * 20}{name}" for number, name in enumerate(world.index.ids)
    ]
    with serving(make_app(world.model, index, LIMITS)) as where:
        watched = opened(browser, where, "phone", dark=dark)
        page = watched.page
        upload(watched, world.query)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert len({round(page.locator(".hit").nth(at).bounding_box()["x"]) for at in range(6)}) == 3  # columns
        cut = "(name) => { const one = document.querySelector(name); return one.scrollWidth > one.clientWidth; }"
        assert page.evaluate(cut, ".hit .id")
        assert page.evaluate("getComputedStyle(document.querySelector('.hit .id')).textOverflow") == "ellipsis"
        page.set_viewport_size({"width": 1280, "height": 900})
        assert page.is_visible(".hit .folder") and page.evaluate("document.documentElement.scrollWidth") == 1280
        page.set_viewport_size({"width": 390, "height": 844})
        buttons = ("#record", ".upload", "#keywords button", "#text", "#typed button", "#export-csv")
        heights = {name: page.locator(name).first.bounding_box()["height"] for name in buttons}
        assert min(heights.values()) >= 44, heights
        colours = page.evaluate(
            "['body', '.quiet', '#record'].map((name) => [getComputedStyle(document.querySelector(name)).color,"
            " getComputedStyle(name === '.quiet' ? document.body : document.querySelector(name)).backgroundColor])"
        )
        bands = page.evaluate(
            "[...document.querySelectorAll('.band')].map((one) =>"
            " [getComputedStyle(one).color, getComputedStyle(one).backgroundColor])"
        )
        assert [_contrast(*pair) >= 4.5 for pair in [*colours, *bands]] == [True] * (3 + len(bands))  # WCAG 2.1, 1.4.3
        assert (_luminance(colours[0][1]) < 0.1) == dark
        assert_no_errors(watched, where)


def _luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [float(part) / 255 for part in colour.strip("rgb()").split(", ")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
