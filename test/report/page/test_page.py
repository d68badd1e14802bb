"""The page of one run and of two: complete, in one file, and made from the files of a run."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from scored_runs import KEYWORDS, scored_data, scored_run

from speechclip.bin.report import main

VOID = {"meta", "link", "img", "input", "br", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """A parsed page: elements with their attributes, and scripts by id. Its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = path.read_text(encoding="utf-8")
        self._open: list[str] = []
        self._script: str | None = None
        self.feed(self.text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("id") or "code"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def load(self, name: str) -> Any:
        """Parse the JSON of a script element."""
        return json.loads(self.scripts[name])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = scored_data(tmp_path_factory.mktemp("recipes") / "mini", images=12, each=2)
    scored_run(folder, "tiny_parallel", noise=0.5)
    scored_run(folder, "tiny_cascaded", noise=2.0)
    return folder


@pytest.fixture(scope="module")
def page(recipe: Path) -> Page:
    main([str(recipe / "exp" / "tiny_cascaded"), "--recordings", "22"])
    return Page(recipe / "exp" / "tiny_cascaded" / "report" / "index.html")


def test_page_fetches_nothing_and_has_unique_ids(page: Page) -> None:
    addresses = [
        attributes[name] or ""
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data")
        if name in attributes
    ]
    allowed = ("#", "data:", "../figures/")
    assert addresses and all(address.startswith(allowed) for address in addresses)
    assert "@import" not in page.text and not re.search(r"url\((?!#)", page.text)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_has_alternative_texts(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    figures = [attributes for tag, attributes in page.elements if tag == "svg" and "aria-hidden" not in attributes]
    recordings = [attributes for tag, attributes in page.elements if tag == "button" and "data-audio" in attributes]
    assert len(pictures) > 20 and all(attributes["alt"] for attributes in pictures)
    assert len(figures) >= 8 and all(attributes["aria-label"] for attributes in figures)
    assert len(recordings) > 10 and all(attributes["aria-label"] for attributes in recordings)


def test_page_has_all_sections(page: Page) -> None:
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [
        "overview", "retrieval", "utterances", "gallery", "keywords", "space", "training", "commands",
    ]  # fmt: skip
    for title in ("Training loss", "Layer weights", "Hit rate of every keyword", "Hit rate by neighbours"):
        assert f'aria-label="{title}' in page.text
    for title in ("Speech and images", "Keyword hit rate, clean", "Time of the named word"):
        assert f"<strong>{title}.</strong>" in page.text


def test_page_starts_with_scores_and_a_picture(page: Page, recipe: Path) -> None:
    start = page.text[page.text.index('<section id="overview"') :].split("</section>")[0]
    folder = recipe / "exp" / "tiny_cascaded" / "scores"
    scores, keywords = (json.loads((folder / f"{name}.json").read_text()) for name in ("retrieval", "keywords"))
    wanted = [
        (scores[way][key], scores[way]["ci95"][key], f"chance {scores['random'][way][key]:.1f}")
        for way, key in (("speech->image", "R@1"), ("speech->image", "R@10"), ("image->speech", "R@10"))
    ]
    control = keywords["shuffled_speech"]["content_top1"]["avg"]
    interval = keywords["ci95"]["content_top1"]["avg"]
    wanted.append((keywords["content_top1"]["avg"], interval, f"shuffled speech {control:.1f}"))
    shown = re.findall(
        r'<b>([\d.]+)</b> % <span class="muted">\[([\d.]+), ([\d.]+)\]</span> <span class="muted">(.*?)</span>', start
    )
    assert shown == [(f"{value:.1f}", f"{low:.1f}", f"{high:.1f}", chance) for value, (low, high), chance in wanted]
    assert start.count("<img") >= 5 and "data-audio" in start


def test_page_folds_keyword_tables_under_a_chart(page: Page) -> None:
    section = page.text[page.text.index('<section id="keywords"') :].split("</section>")[0]
    before, folded = section.split('<details class="more">')
    assert before.count("<figure") == 1 and "<table" not in before
    tables = folded.count("<table")
    assert tables > 5 and f"<summary>All keyword scores ({tables} tables)</summary>" in folded


def test_page_data_agree_with_the_scores(page: Page, recipe: Path) -> None:
    data, media = page.load("data"), page.load("media")
    assert len(data["utterances"]) == 24 and len(media["spectrograms"]) == 24
    heard = {attributes["data-audio"] for tag, attributes in page.elements if "data-audio" in attributes}
    assert (
        heard <= set(media["audio"]) and max(len(heard), 22) == len(media["audio"]) < 24
    )  # examples always have their recording
    assert len(data["images"]) == len(media["images"]) == len(data["map"]) == 12
    assert all(uri.startswith("data:audio/mpeg") for uri in media["audio"].values())
    scores = json.loads((recipe / "exp/tiny_cascaded/scores/retrieval.json").read_text())
    ranks = np.array([item["rank"] for item in data["utterances"]])
    assert 100 * np.mean(ranks <= 1) == pytest.approx(scores["speech->image"]["R@1"])
    first = data["utterances"][0]
    assert first["found"][ranks[0] - 1] == first["image"] if ranks[0] <= 4 else first["image"] not in first["found"]
    assert len(first["keywords"]) == KEYWORDS and {"attention", "span", "hit", "gold"} <= set(first["keywords"][0])
    assert first["words"][0][1:] == [0.0, 0.04] and "words" not in data["utterances"][1]


def test_page_escapes_captions_and_subwords(page: Page) -> None:
    assert any("</script>" in subword for item in page.load("data")["utterances"]
               for keyword in item["keywords"] for subword in keyword["subwords"])  # fmt: skip
    assert page.text.count("</script>") == 3  # those of the three script elements


def test_page_has_examples_of_both_directions(page: Page) -> None:
    data = page.load("data")
    ranks = [int(rank) for rank in re.findall(r"Its image is at rank <strong>(\d+)", page.text)]
    assert len(ranks) == 9 and ranks[:3] == [1, 1, 1]
    assert max(ranks[6:]) == max(item["rank"] for item in data["utterances"])
    assert len(re.findall(r"first utterance of this image is at rank <strong>(\d+)", page.text)) == 9
    assert page.text.count("✓ right") >= 18


def test_report_writes_figures_for_papers(page: Page, recipe: Path) -> None:
    folder = recipe / "exp" / "tiny_cascaded" / "figures"
    assert {path.name for path in folder.iterdir()} == {
        f"{n}.{s}" for n in ("map", "attention") for s in ("svg", "png")
    }


def test_report_is_deterministic(page: Page, recipe: Path, tmp_path: Path) -> None:
    again = recipe / "exp" / "tiny_cascaded" / "again" / "page.html"
    main([str(recipe / "exp" / "tiny_cascaded"), "--recordings", "22", "--out", str(again)])
    assert again.read_text(encoding="utf-8") == page.text


def test_page_in_another_folder_links_the_figures(recipe: Path, tmp_path: Path) -> None:
    run = scored_run(recipe, "tiny_cascaded_odd #1", noise=1.0)
    for out in (run / "report" / "index.html", tmp_path / "one" / "two" / "page.html"):
        main([str(run), "--out", str(out)])
        links = [a["href"] or "" for tag, a in Page(out).elements if tag == "a" and "figures/" in (a.get("href") or "")]
        assert sorted(Path(link).name for link in links) == ["attention.svg", "map.svg"]
        for link in links:
            assert (out.parent / unquote(link)).read_text(encoding="utf-8").startswith("<?xml")
            assert "#" not in link and " " not in link
    shutil.rmtree(run)


def test_report_reads_the_recipe_of_the_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scored_data(tmp_path / "other", images=4, each=2)  # has data/test, too
    monkeypatch.chdir(other)
    main([str(recipe / "exp" / "tiny_parallel"), "--out", str(tmp_path / "page.html")])
    assert len(Page(tmp_path / "page.html").load("data")["utterances"]) == 24


def test_page_has_the_words_of_textgrids(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # earlier tests change the current folder
    folder = tmp_path / "mini"
    shutil.copytree(recipe, folder)
    ctm = folder / "data" / "test" / "ctm"
    name, text = ctm.read_text().split()[0], 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    ctm.unlink()
    (ctm.parent / "textgrid").mkdir()
    intervals = '0\n0.25\n"sil"\n0.25\n0.5\n"heron"\n'
    tier = f'0\n0.5\n<exists>\n1\n"IntervalTier"\n"words"\n0\n0.5\n2\n{intervals}'
    (ctm.parent / "textgrid" / f"{name}.TextGrid").write_text(text + tier)
    main([str(folder / "exp" / "tiny_cascaded"), "--out", str(tmp_path / "page.html")])
    listed = Page(tmp_path / "page.html").load("data")["utterances"]
    assert {item["id"]: item["words"] for item in listed if "words" in item} == {name: [["heron", 0.25, 0.5]]}


def test_page_of_weights_with_an_unknown_seed(recipe: Path) -> None:
    run = scored_run(recipe, "tiny_parallel_published", noise=0.5)
    path = run / "scores" / "retrieval.json"
    scores = json.loads(path.read_text())
    scores["provenance"]["seed"] = None
    path.write_text(json.dumps(scores))
    main([str(run)])
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "<dt>seed</dt><dd>unknown</dd>" in text
    shutil.rmtree(run)


def test_page_of_a_head_without_keywords(recipe: Path, tmp_path: Path) -> None:
    main([str(recipe / "exp" / "tiny_parallel"), "--out", str(tmp_path / "parallel.html"), "--utterances", "20"])
    parallel = Page(tmp_path / "parallel.html")
    assert 'id="keywords"' not in parallel.text and len(parallel.load("data")["utterances"]) >= 20
    assert all("keywords" not in item for item in parallel.load("data")["utterances"])


def test_report_compares_two_runs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(recipe / "exp" / name) for name in ("tiny_parallel", "tiny_cascaded")]
    main([*runs, "--permutations", "200"])
    lines = capsys.readouterr().out.splitlines()
    scores = [json.loads((Path(run) / "scores" / "retrieval.json").read_text()) for run in runs]
    there = next(line.split() for line in lines if line.startswith("speech->image R@10 "))
    assert [float(there[2]), float(there[3])] == pytest.approx(
        [content["speech->image"]["R@10"] for content in scores], abs=0.01
    )
    low, high = (float(word.strip("[],")) for word in there[5:7])
    assert low <= float(there[4]) <= high
    target = recipe / "exp/tiny_parallel/report/against_tiny_cascaded.html"
    assert lines[-1] == f"wrote {target}"
    page = Page(target)
    for text in ("speech → image", "200 permutations", "Better rank in tiny_parallel", "Mean R@10 on dev"):
        assert text in page.text
    assert f"{float(there[7]):.4f}" in page.text and "<strong>Keywords.</strong>" not in page.text
    assert f"<small>[{low:+.1f}, {high:+.1f}]</small>" in page.text
    assert page.load("media")["audio"] and page.scripts["data"] == "null"


KEYWORD_SCORES = ("clean", "reference", "content_top1", "gold_cosine", "words")


def test_report_compares_keyword_scores(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = scored_run(recipe, "tiny_cascaded_other", noise=1.0, seed=1)
    runs = [recipe / "exp" / "tiny_cascaded", other]
    main([*map(str, runs), "--permutations", "100"])
    said = capsys.readouterr().out.splitlines()
    lines = [line for line in said if line.startswith(KEYWORD_SCORES)]
    assert max(map(len, said[:-1])) <= 80  # the last line names a file
    assert len(lines) == 3 + 2 + 2 * 6
    scores = [json.loads((run / "scores" / "keywords.json").read_text()) for run in runs]
    target = runs[0] / "report" / "against_tiny_cascaded_other.html"
    page = Page(target)
    table = page.text[page.text.index("<strong>Keywords.</strong>") :].split("</table>")[0]
    for name, shown, values in (
        ("clean", "clean", [score["clean"]["avg"] for score in scores]),
        ("words content f1", "F1 of words, without stop words", [score["words"]["content"]["f1"] for score in scores]),
    ):
        words = next(line for line in lines if line.startswith(f"{name} ")).split()
        first, second, difference = (float(word) for word in words[len(name.split()) :][:3])
        assert [first, second] == pytest.approx(values, abs=0.01)
        assert difference == pytest.approx(values[0] - values[1], abs=0.02)
        row = table[table.index(f">{shown}</th>") :].split("</tr>")[0]
        cells = re.findall(r"<td>([^<]+?)(?: <small>\[(.+?)\]</small>)?</td>", row)
        assert [float(cell) for cell, _ in cells[:3]] == pytest.approx([*values, values[0] - values[1]], abs=0.051)
        low, high = (float(end) for end in cells[2][1].split(","))
        assert low <= values[0] - values[1] <= high
        assert cells[3] == (f"{float(words[-1]):.4f}", "")
    (other / "scores" / "keywords.npz").unlink()  # the scores without the data of the tests
    main([*map(str, runs), "--permutations", "100"])
    assert not any(line.startswith(KEYWORD_SCORES) for line in capsys.readouterr().out.splitlines())
    table = Page(target).text.split("<strong>Keywords.</strong>")[1].split("</table>")[0]
    row = table[table.index(">clean</th>") :].split("</tr>")[0]
    assert f"<td>{scores[1]['clean']['avg']:.1f} <small>" in row and row.count("<td>–</td>") == 2
    shutil.rmtree(other)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["exp/none"], "exp/none: is not a directory"),
        (["exp/tiny_parallel", "exp/tiny_parallel"], "cannot be compared with itself"),
        (["exp/tiny_parallel", "--data_dir", "data/none"], "data/none: no such folder"),
        (["exp/tiny_parallel", "--dump_dir", "dump/none"], "image_embeddings.npz: is missing"),
        (["exp/tiny_parallel", "--recordings", "0"], "--recordings: 0 is not at least 1"),
        (["a", "b", "c"], "one or two runs are needed, not 3"),
    ],
)
def test_report_command_refuses_mistakes(
    recipe: Path, words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe)
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code in (1, 2) and error.startswith("error: ") and reason in error and error.count("\n") == 1
