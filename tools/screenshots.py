#!/usr/bin/env python3
"""Draw every picture of README.md again: tools/screenshots.py [--only NAME ...].

The pictures are in egs/mini/figures. All but the architecture come from the model that is shipped in egs/mini/models;
the search page is opened in a headless Chromium (apt-get install chromium, and the extras "dev search").
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.constants import SAMPLE_RATE

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "egs" / "mini"
MODEL, DEMO = MINI / "models" / "hybrid", MINI / "models" / "demo"
FIGURES = MINI / "figures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUERY = 3  # row of queries.tsv that the pictures show
SHOWN = 6  # images in the retrieval example
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8a94a3"
PICTURES = ("architecture", "retrieval", "keywords", "search_page")


def demo_query() -> tuple[Path, str, str]:
    """Return the file, the scene and the caption of the query that the pictures show."""
    with (DEMO / "queries.tsv").open(encoding="utf-8", newline="") as file:
        row = list(csv.DictReader(file, delimiter="\t"))[QUERY]
    return DEMO / "queries" / row["query"], row["scene"], row["caption"]


# The architecture


def box(x: int, y: int, width: int, height: int, lines: Sequence[str], kind: str) -> str:
    """Return a rectangle with centred lines of text. kind: "frozen", "trained" or "data"."""
    fill, stroke = {"frozen": ("#eef1f5", "#8a94a3"), "trained": ("#dcecf8", BLUE), "data": ("#fff6e0", ORANGE)}[kind]
    start = y + height / 2 - 9 * (len(lines) - 1) + 5
    text = "".join(
        f'<text x="{x + width / 2}" y="{start + 18 * row}"{"" if row == 0 else small}>{escape(line)}</text>'
        for row, line in enumerate(lines)
        for small in (' class="small"',)
    )
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{stroke}"/>{text}'


def arrow(*points: tuple[int, int]) -> str:
    """Return a line through the points with a head at the last one."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="{path}" fill="none" stroke="#4b5563" stroke-width="1.6" marker-end="url(#head)"/>'


def label(x: int, y: int, text: str) -> str:
    """Return a small grey text that starts at x."""
    return f'<text x="{x}" y="{y}" class="note">{escape(text)}</text>'


def draw_architecture(target: Path) -> None:
    """Draw the network: the encoders, both branches and the loss."""
    parts = [
        box(16, 100, 128, 58, ["spoken caption", "16 kHz"], "data"),
        arrow((144, 129), (168, 129)),
        box(170, 100, 118, 58, ["HuBERT", "frozen"], "frozen"),
        arrow((288, 129), (312, 129)),
        box(314, 100, 134, 58, ["weighted sum", "of hidden states"], "trained"),
        arrow((448, 115), (474, 115), (474, 55), (498, 55)),
        arrow((448, 143), (474, 143), (474, 203), (498, 203)),
        label(500, 18, "parallel branch"),
        box(500, 26, 252, 58, ["[CLS] + transformer layer", "linear layer"], "trained"),
        arrow((752, 55), (976, 55)),
        box(978, 26, 126, 58, ["embedding", "of the utterance"], "data"),
        label(500, 166, "cascaded branch"),
        box(500, 174, 156, 58, ["8 [CLS] + attention", "or integrate-and-fire"], "trained"),
        arrow((656, 203), (674, 203)),
        box(676, 174, 132, 58, ["quantizer", "BatchNorm, cosine"], "trained"),
        arrow((808, 203), (826, 203)),
        box(828, 174, 130, 58, ["CLIP text", "encoder, frozen"], "frozen"),
        arrow((958, 203), (976, 203)),
        box(978, 174, 126, 58, ["embedding", "of the keywords"], "data"),
        arrow((742, 232), (742, 262)),
        box(642, 264, 200, 44, ["keywords: red, star, boats"], "data"),
        box(16, 326, 128, 58, ["image", "of the caption"], "data"),
        arrow((144, 355), (312, 355)),
        box(314, 326, 134, 58, ["CLIP image", "encoder, frozen"], "frozen"),
        arrow((448, 355), (976, 355)),
        box(978, 326, 126, 58, ["embedding", "of the image"], "data"),
        f'<path d="M1104 55 C1150 90 1150 320 1104 355 M1104 203 C1126 225 1126 320 1104 349" fill="none" '
        f'stroke="{GREEN}" stroke-width="2" stroke-dasharray="5 4"/>',
        '<text x="1146" y="196" class="loss">contrastive</text><text x="1146" y="214" class="loss">loss</text>',
        *(
            f'<rect x="{x}" y="411" width="16" height="15" rx="3" fill="{fill}" stroke="{stroke}"/>'
            for x, fill, stroke in ((16, "#dcecf8", BLUE), (106, "#eef1f5", "#8a94a3"), (190, "#fff6e0", ORANGE))
        ),
        label(38, 423, "trained"),
        label(128, 423, "frozen"),
        label(212, 423, "data"),
        label(314, 423, "Training uses no transcripts. The image is the only link between the recording and CLIP."),
    ]
    svg = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1250 440" width="1250" height="440" role="img" '
        'aria-label="SpeechCLIP: HuBERT, a weighted sum, a parallel and a cascaded branch, and CLIP">',
        "<style>text{font:600 13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#111827;"
        "text-anchor:middle}.small{font-weight:400;font-size:12px;fill:#374151}"
        ".note{font-weight:400;text-anchor:start;fill:#4b5563}.loss{text-anchor:start;fill:#047857}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L10 5 L0 10 z" fill="#4b5563"/></marker></defs>',
        '<rect width="1250" height="440" rx="10" fill="#ffffff"/>',
        *parts,
        "</svg>",
    ]
    target.with_suffix(".svg").write_text("\n".join(svg) + "\n", encoding="utf-8")


# Pictures of the shipped model


def waveform(path: Path) -> np.ndarray:
    """Return the samples [n] of a recording at 16 kHz."""
    from speechclip.data.audio import load_audio

    return np.asarray(load_audio(path))


def draw_retrieval(target: Path) -> None:
    """Draw a spoken query and the first images that it finds."""
    import matplotlib.pyplot as plt
    from PIL import Image

    from speechclip import SpeechCLIP

    query, scene, caption = demo_query()
    model = SpeechCLIP.from_pretrained(MODEL)
    files = sorted((DEMO / "images").glob("*.png"))
    cosines = (model.encode_speech([query]) @ model.encode_image(files).T)[0]
    best = cosines.argsort(descending=True)[:SHOWN].tolist()
    samples = waveform(query)
    figure = plt.figure(figsize=(10, 3.1), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.9))
    axis = top.subplots()
    axis.plot(np.arange(len(samples)) / SAMPLE_RATE, samples, color=BLUE, linewidth=0.6)
    axis.set(xlim=(0, len(samples) / SAMPLE_RATE), yticks=[])
    axis.set_title(f"Spoken query: “{caption}”", loc="left", fontsize=11)
    axis.spines[["top", "right", "left"]].set_visible(False)
    for place, row in zip(bottom.subplots(1, SHOWN), best, strict=True):
        right = files[row].stem == scene
        place.imshow(Image.open(files[row]))
        place.set(xticks=[], yticks=[])
        place.set_title(f"{float(cosines[row]):.2f}" + ("  its image" if right else ""), fontsize=10)
        for spine in place.spines.values():
            spine.set(visible=right, edgecolor=GREEN, linewidth=4)
    _save(figure, target)


def draw_keywords(target: Path) -> None:
    """Draw the keywords of a spoken query over its spectrogram."""
    import librosa
    import matplotlib.pyplot as plt

    from speechclip import SpeechCLIP

    query, _, caption = demo_query()
    keywords = SpeechCLIP.from_pretrained(MODEL).keywords([query], top_k=1)[0]
    samples = waveform(query)
    power = librosa.feature.melspectrogram(y=samples, sr=SAMPLE_RATE, n_fft=400, hop_length=160, n_mels=80)
    seconds = len(samples) / SAMPLE_RATE
    figure, (bars, axis) = plt.subplots(
        2, 1, figsize=(10, 4.2), sharex=True, height_ratios=(1.25, 1), layout="constrained"
    )
    axis.imshow(
        librosa.power_to_db(power, ref=np.max), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 8)
    )
    axis.set(xlabel="seconds", ylabel="kHz (mel)", yticks=[0, 8], xlim=(0, seconds))
    for row, keyword in enumerate(sorted(keywords, key=lambda keyword: keyword.span)):
        start, end = keyword.span
        word = keyword.subwords[0].strip("▁").removesuffix("</w>")
        colour = GREEN if word in caption.split() else GREY
        bars.barh(-row, end - start, left=start, height=0.72, color=colour)
        at, side = (end + 0.02, "left") if end < 0.8 * seconds else (start - 0.02, "right")
        bars.text(at, -row, f"{word}  {keyword.cosines[0]:.2f}", va="center", ha=side, fontsize=10)
    bars.set(yticks=[])
    bars.set_title(f"Keywords of “{caption}”", loc="left", fontsize=11)
    bars.set_title("nearest subword, cosine; green: a spoken word", loc="right", fontsize=9, color=GREY)
    bars.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, target)


def _save(figure: Any, target: Path) -> None:
    figure.savefig(target.with_suffix(".png"), dpi=130, metadata={"Software": None})


@contextlib.contextmanager
def serving(port: int) -> Iterator[str]:
    """Run `speechclip serve` on the demo index and yield its address."""
    command = [sys.executable, "-m", "speechclip.cli", "serve", "--index", str(DEMO / "index"), "--port", str(port)]
    command += ["--top_k", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}/"
    try:
        from urllib.error import URLError
        from urllib.request import urlopen

        for _ in range(600):
            if server.poll() is not None:
                raise SystemExit(f"error: speechclip serve ended: {server.communicate()[0].strip()}")
            try:
                with urlopen(address, timeout=5):
                    break
            except (URLError, ConnectionError):
                time.sleep(0.2)
        else:
            raise SystemExit(f"error: {address} does not answer")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def draw_search_page(target: Path) -> None:
    """Open the search page in Chromium, upload a spoken query and take a screenshot of the answer."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit(f"error: none of {' '.join(BROWSERS)} is installed. Run: apt-get install chromium")
    query, _, _ = demo_query()
    with serving(8017) as address, sync_playwright() as playwright:
        # The sandbox needs rights that root does not have in a container. Only the project's page is opened.
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 600}, color_scheme="light")
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        page.set_input_files("#file", query)
        page.wait_for_selector("#found:not([hidden]) #results img", timeout=120_000)
        page.wait_for_timeout(1500)  # thumbnails and the player
        page.screenshot(path=target.with_suffix(".png"), full_page=True)
        browser.close()


def main() -> None:
    """Parse the options and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=PICTURES, help="pictures to draw (default: all)")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the pictures (default: egs/mini/figures)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("MPLBACKEND", "Agg")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        globals()[f"draw_{name}"](args.out / name)
        print(f"{args.out / name}: drawn")


if __name__ == "__main__":
    main()
