"""The parts of a page: examples, the plane, recordings and images, keywords over time, tables."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from scored_runs import scored_data, scored_run

from speechclip.report.page import media, tables
from speechclip.report.page.examples import examples, top
from speechclip.report.page.inline import inline_svg
from speechclip.report.page.projection import project
from speechclip.report.page.viewer import listed_rows
from speechclip.report.runs import Run, Scores, load_run
from speechclip.report.tables import OWN, QUOTED, Cell


def _unit(degrees: list[float]) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_examples_are_the_best_median_and_worst() -> None:
    gallery = _unit([0, 20, 40, 60, 80])
    # The right item is at rank 1, 1, 2 and 5. The last query has the group of the first one, which is already shown.
    queries, groups = _unit([1, 24, 29, 80]), np.array([0, 1, 2, 0])
    found = examples(queries, gallery, groups, np.arange(5), each=1, shown=2)
    assert {kind: [(item.query, item.rank) for item in items] for kind, items in found.items()} == {
        "best": [(0, 1)], "typical": [(1, 1)], "worst": [(2, 2)],
    }  # fmt: skip


def test_example_has_its_results_and_the_right_item() -> None:
    gallery = _unit([0, 20, 40, 60, 80])
    queries, groups = _unit([1, 22, 58, 10]), np.array([0, 1, 3, 4])
    found = examples(queries, gallery, groups, np.arange(5), each=1, shown=2)
    worst = found["worst"][0]
    assert (worst.query, worst.rank, worst.truth) == (3, 5, 4)
    assert set(worst.found) == {0, 1} and worst.cosines[0] == pytest.approx(np.cos(np.deg2rad(10)))
    assert worst.truth_cosine == pytest.approx(np.cos(np.deg2rad(70)))
    assert found["best"][0].query == 0 and found["best"][0].found == (0, 1)
    # queries 1 and 2 are both at rank 1 and 2 degrees off; the first one is nearer to the median
    assert found["typical"][0].query in (1, 2)


def test_examples_show_no_group_twice() -> None:
    speech, images = _unit([0, 1, 2, 50, 51]), _unit([0, 50])
    found = examples(images, speech, np.array([0, 1]), np.array([0, 0, 0, 1, 1]), each=3, shown=3)
    assert [item.query for kind in found.values() for item in kind] == [0, 1]
    assert found["best"][0].found == (0, 1, 2) and found["best"][0].truth == 0
    rows, cosines = top(images, speech, 2)
    assert rows.tolist() == [[0, 1], [3, 4]] and cosines[0, 0] == pytest.approx(1.0)


def test_project_keeps_distances_in_the_widest_plane() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((40, 2)) * [3.0, 1.0]
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0][:, :2]
    speech, images = flat[:25] @ basis.T + 5.0, flat[25:] @ basis.T - 5.0  # a gap between the kinds
    plane = project(speech, images)
    assert sum(plane.explained) == pytest.approx(1.0) and plane.explained[0] > 0.7
    for points, rows in ((plane.speech, flat[:25]), (plane.images, flat[25:])):
        assert np.linalg.norm(points[0] - points[1]) == pytest.approx(np.linalg.norm(rows[0] - rows[1]))
        assert points.mean(axis=0) == pytest.approx([0.0, 0.0], abs=1e-9)
    assert plane.gap < -0.9
    again = project(speech, images)
    assert np.array_equal(plane.speech, again.speech)


def test_media_uris_decode_to_their_input(tmp_path: Path) -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)
    kind, data = media.audio_uri(tone).split(";base64,")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert (kind, rate, len(heard)) == ("data:audio/mpeg", 16000, 16000)
    assert np.abs(np.fft.rfft(heard)).argmax() == 440
    assert len(data) < 12000
    kind, data = media.spectrogram_uri(tone).split(";base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
    assert kind == "data:image/webp" and picture.shape == (media.MEL_BANDS, 51)
    loudest = picture[:, 25].argmax()
    assert loudest > 0.7 * media.MEL_BANDS  # 440 Hz is near the bottom
    assert picture[loudest].mean() > 200 and picture[5].mean() < 60
    Image.new("RGB", (400, 200), (250, 0, 0)).save(tmp_path / "red.png")
    kind, data = media.thumbnail_uri(tmp_path / "red.png").split(";base64,")
    small = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    red, green, _ = small.getpixel((50, 20))
    assert small.size == (112, 56) and red > 230 and green < 25
    levels = media.envelope(np.concatenate([np.zeros(100), -0.5 * np.ones(100)]).astype(np.float32), 4)
    assert levels.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert list(base64.b64decode(media.packed([[0.0, 0.5], [1.0, 2.0]]))) == [0, 128, 255, 255]


def test_listed_rows_fill_up_evenly() -> None:
    assert listed_rows(10, [3], 4) == [0, 3, 5, 9]
    assert listed_rows(5, [1], 100) == [0, 1, 2, 3, 4]
    assert listed_rows(5, [4, 2, 0], 2) == [0, 2, 4]


def _run(keywords: dict[str, object], model: str = "large") -> Run:
    level = {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MRR": 3.0}
    row = {**level, "n_queries": 50, "n_gallery": 10, "ci95": {"R@1": [0.5, 1.5]}}
    names = ("speech->image", "image->speech")
    content = {**dict.fromkeys(names, row), "random": dict.fromkeys(names, {**level, "R@1": 0.004}), "mean_R@10": 10.0}
    content["branches"] = {"cascaded": {name: {**row, "R@1": 0.7} for name in names}}
    path = Path("x")
    return Run(path, model, "hybrid", "", 0, Scores(path, content), Scores(path, keywords), None)


def test_retrieval_table_has_published_rows_and_chance() -> None:
    (table,) = tables.retrieval_tables(_run({}), "spokencoco")
    rows = {row.name: row for row in table.rows}
    assert table.columns[:4] == ["S→I R@1", "S→I R@5", "S→I R@10", "S→I MRR"] and len(table.columns) == 8
    assert rows["this run"].cells[0] == Cell(1.0, ci95=(0.5, 1.5)) and rows["this run"].kind == OWN
    published = next(row for name, row in rows.items() if name.startswith("SpeechCLIP Parallel Large"))
    assert [cell.text for cell in published.cells] == ["35.8", "66.5", "78.0", "–", "50.6", "80.9", "89.1", "–"]
    assert published.kind == QUOTED and "quoted" in published.name
    assert rows["chance"].cells[0].text == "0.004"
    assert rows["hybrid (cascaded branch)"].cells[4].text == "0.7"
    assert [row.kind for row in tables.retrieval_tables(_run({}), "mini")[0].rows].count(QUOTED) == 0


def test_keyword_tables_show_the_available_scores() -> None:
    rates = {"kw1": 20.0, "kw10": 40.0, "kw2": 30.0, "avg": 30.0}
    scores = ("clean", "reference", "content_top1")
    old = {**dict.fromkeys(scores, rates), "frequency_prior": dict.fromkeys(scores, rates)}
    old["n_utterances"] = dict.fromkeys(scores, 7)
    names = [table.title for table in tables.keyword_tables(_run(old), "mini")]
    assert names == ["Keyword hit rate, clean", "Keyword hit rate, reference", "Keyword hit rate, content_top1"]
    first = tables.keyword_tables(_run(old), "mini")[0]
    assert first.columns == ["avg", "kw1", "kw2", "kw10"]
    assert [row.name for row in first.rows] == ["this run", "frequency prior"]


def test_keyword_tables_of_a_scored_run(tmp_path: Path) -> None:
    recipe = scored_data(tmp_path / "mini", images=6, each=2)
    run = load_run(scored_run(recipe, "large_cascaded", noise=1.0))
    assert run.keywords is not None
    content = run.keywords.content
    found = {table.title: table for table in tables.keyword_tables(run, "spokencoco")}
    assert len(found) == 11
    for table in found.values():
        assert table.rows and all(len(row.cells) == len(table.columns) for row in table.rows)

    def shown(value: float, interval: list[float], digits: int = 1) -> Cell:
        return Cell(value, digits, (interval[0], interval[1]))

    clean = found["Keyword hit rate, clean"].rows
    assert clean[0].cells[0] == shown(content["clean"]["avg"], content["ci95"]["clean"]["avg"])
    assert [row.name for row in clean] == ["this run", "frequency prior", "shuffled speech", "keywords counted"]
    assert [cell.text for cell in clean[-1].cells] == ["36", "12", "12", "12"]
    reference = found["Keyword hit rate, reference"].rows
    assert reference[0].name.startswith("Large (COCO)") and reference[0].cells[0].text == "38.2"
    for title, section in (("clean", "sweep"), ("reference", "reference_sweep")):
        rows = found[f"Hit rate by neighbours, {title}"].rows
        assert [row.name for row in rows] == [f"K = {k}" for k in (1, 3, 5, 10, 20)]
        for at, kind in ((0, "all"), (3, "content")):
            score = content[section][kind]["3"]
            assert rows[1].cells[at] == shown(score["avg"], score["ci95"]["avg"])
            assert rows[1].cells[at + 2] == tables.cell(score["shuffled_speech"]["avg"])
    words, score = found["Words of the caption"], content["words"]["content"]
    assert words.columns[2:] == ["F1", "whole precision", "whole recall", "whole F1"]
    assert words.rows[3].cells[2] == shown(score["f1"], score["ci95"]["f1"])
    assert words.rows[4].cells[5] == tables.cell(score["frequency_prior"]["whole_f1"])
    flaw = content["flaws"]["special_tokens+quantised"]
    row = next(row for row in found["Flaws of the published scoring"].rows if row.name == "special tokens + quantised")
    assert row.cells[1] == tables.cell(flaw["difference"]["avg"], flaw["difference"]["ci95"])
    cosine = content["gold_cosine"]["all"]
    assert found["Cosine to the nearest gold subword"].rows[0].cells[0] == shown(
        cosine["avg"], cosine["ci95"]["avg"], 3
    )
    anywhere = content["overlap"]["random_position"]["overlap"]
    assert found["Time of the named word"].rows[-1].cells[1] == tables.cell(anywhere)
    assert found["Word boundaries"].rows[-1].cells[2] == tables.cell(content["segmentation"]["uniform"]["f1"])
    assert tables.cell(None).text == "–" and tables.cell(0.004).text == "0.004"
    signed = tables.cell(0.25, [-1.0, 2.0], signed=True)
    assert (signed.text, signed.interval) == ("+0.2", "[-1.0, +2.0]")


def test_inline_svg_has_unique_ids_colours_and_a_text() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1], color="#0072B2")
    svg = inline_svg(figure, "one", 'A line, "rising"')
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert 'role="img" aria-label="A line, &quot;rising&quot;"' in svg
    assert "var(--blue)" in svg and "#0072b2" not in svg and "<style" not in svg and "font-family" not in svg
    assert 'id="one-figure_1"' in svg and "url(#one-" in svg and 'viewBox="0 0 216 144"' in svg
    assert svg == inline_svg(figure, "one", 'A line, "rising"')
