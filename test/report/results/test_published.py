"""The paper's tables: quoted rows, own rows below them, and the command of a row that was not measured."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest

from speechclip.report.results.document import render
from speechclip.report.results.published import QUOTED_OMNI, SIZES, TABLES, published_tables
from speechclip.report.results.retrieval_tables import coarse_head, second_stage_scores
from speechclip.report.runs import Scores
from speechclip.report.tables import Cell, Row, Table

COLUMNS = [f"{short} R@{k}" for short in ("S→I", "I→S") for k in (1, 5, 10)]
NAMES = ("model", "head", "tag", "seed", "commit")
IMAGES = "Speech and images"


def own(model: str, head: str, value: float, seed: str = "0", tag: str = "", commit: str = "a") -> Row:
    return Row((model, head, tag, seed, commit), [Cell(value, 2)] * 6)


def tables_of(recipe: str, rows: list[Row]) -> list[Table]:
    return published_tables(recipe, {IMAGES: Table(IMAGES, "", COLUMNS, rows, NAMES)})


def printed(table: Table) -> list[tuple[str, ...]]:
    """Model, origin and first number of every row."""
    return [(*row.name, row.cells[0].text) for row in table.rows]


def test_every_published_line_has_numbers_and_a_source() -> None:
    for table in TABLES:
        for line in table.lines:
            assert len(line.numbers) in (0, len(table.columns)), line.name
            assert line.source.startswith("quoted") and (line.numbers or line.own)
            if "avg" in table.columns and line.numbers:
                assert abs(sum(line.numbers[:-1]) / 8 - line.numbers[-1]) < 0.06, line.name


def test_own_row_follows_the_quoted_row() -> None:
    table = tables_of("spokencoco", [own("large", "parallel", 30.0), own("large", "parallel", 99.0, tag="mine")])[0]
    assert printed(table)[4:] == [
        ("SpeechCLIP Parallel Large", "quoted: Shih et al. 2022", "35.8"),
        ("SpeechCLIP Parallel Large", "this project, seed 0", "30.00"),
        ("SpeechCLIP Cascaded Large", "quoted: Shih et al. 2022", "6.4"),
        ("SpeechCLIP Cascaded Large", "not run: `./run.sh --model large --head cascaded`", "–"),
        ("jina-v5-omni-nano", QUOTED_OMNI, "–"),
    ]
    names = [("FaST-VGS_CO", "31.8"), ("FaST-VGS_CTF", "35.9")]
    command = "not run: `./run.sh --model base --head fast_vgs --region_files FILES`"
    assert printed(table)[:4] == [
        row
        for name, number in names
        for row in ((name, "quoted: Peng and Harwath 2022, in Shih et al. 2022", number), (name, command, "–"))
    ]


def test_only_published_regions_fill_the_rows_of_fast_vgs() -> None:
    names = ("FaST-VGS (BUTD-36)", "FaST-VGS (BUTD-36) (coarse to fine, K=100)")
    others = ("FaST-style (CLIP patches)", "FaST-style (CLIP patches) (coarse to fine, K=100)")
    own_rows = [own("base", name, value) for name, value in zip(names + others, (1.0, 2.0, 3.0, 4.0))]
    table = tables_of("spokencoco", own_rows)[0]
    assert [row[1:] for row in printed(table)[:4]][1::2] == [
        ("this project, seed 0", "1.00"),
        ("this project, seed 0", "2.00"),
    ]


@pytest.mark.parametrize(
    ("rows", "origin", "number"),
    [
        ([("0", 30.0, "a"), ("1", 31.0, "a"), ("mean of 2", 30.5, "a")], "mean of 2", "30.50"),
        ([("0", 30.0, "a"), ("1", 31.0, "b")], "seed 1", "31.00"),  # the last commit
        ([("0", 1.0, "a"), ("1", 2.0, "a"), ("mean of 2", 1.5, "a"), ("0", 7.0, "b")], "seed 0", "7.00"),
    ],
)
def test_own_row_is_the_mean_of_the_last_commit(rows: list[tuple[str, float, str]], origin: str, number: str) -> None:
    table = tables_of("spokencoco", [own("large", "parallel", value, seed, "", at) for seed, value, at in rows])[0]
    assert [row[1:] for row in printed(table) if row[1].startswith("this")] == [(f"this project, {origin}", number)]


def test_released_checkpoint_follows_the_own_row() -> None:
    table = tables_of("spokencoco", [own("large", "parallel", 34.0, "unknown", tag="published")])[0]
    assert [row[1:] for row in printed(table) if row[0] == "SpeechCLIP Parallel Large"] == [
        ("quoted: Shih et al. 2022", "35.8"),
        ("not run: `./run.sh --model large --head parallel`", "–"),
        ("the authors' checkpoint, scored here", "34.00"),
    ]


def test_supervised_topline_names_its_command() -> None:
    table = published_tables("spokencoco", {})[1]
    assert table.rows[-1].name[1] == "not run: `./run.sh --model large --head parallel --supervision text`"
    assert table.rows[-2].cells[-1].text == "99.93"


def test_chance_is_computed_for_each_protocol() -> None:
    table = next(table for table in published_tables("spokencoco", {}) if "zero-shot" in table.title)
    rows = [[*row.name, *(cell.text for cell in row.cells)] for row in table.rows if row.name[0] == "Random"]
    assert rows[0][2:5] == ["0.02", "0.10", "0.20"]
    caption = [f"{100 * k / 25_031:.3f}" for k in (1, 5, 10)]  # one right answer
    image = [f"{100 * (1 - math.comb(25_031 - 5, k) / math.comb(25_031, k)):.3f}" for k in (1, 5, 10)]  # five
    assert rows[1:] == [
        ["Random", "computed: any caption of the image, 25,031 captions of 5,000 images", *image, *image],
        ["Random", "computed: own caption, 25,031 captions of 5,000 images", *caption, *caption],
    ]
    assert image[0] == "0.020" and caption[0] == "0.004"


def test_keyword_rows_name_their_count() -> None:
    columns = [*(f"kw{number}" for number in range(1, 9)), "avg"]
    names = ("model", "head", "tag", "seed")
    own_tables = {}
    for score, number in (("reference", 40.0), ("clean", 20.0), ("content_top1", 9.0)):
        rows = [
            Row(("large", "cascaded", tag, "0"), [Cell(value)] * 9)
            for tag, value in (("", number), ("published", number + 0.5))
        ]
        title = f"Keyword hit rate, {score}"
        own_tables[title] = Table(title, "", columns, rows, names)
    table = next(table for table in published_tables("spokencoco", own_tables) if "keyword" in table.title)
    assert [(row.name[1], row.cells[-1].text) for row in table.rows] == [
        ("quoted: Shih et al. 2022", "38.2"),
        ("this project, seed 0, reference", "40.0"),
        ("this project, seed 0, clean", "20.0"),
        ("the authors' checkpoint, scored here, reference", "40.5"),
        ("the authors' checkpoint, scored here, clean", "20.5"),
    ]
    empty = next(table for table in published_tables("spokencoco", {}) if "keyword" in table.title)
    assert [row.name[1] for row in empty.rows][1:] == ["not run: `./run.sh --model large --head cascaded`"]


@pytest.mark.parametrize("recipe", ["flickr8k", "spokencoco"])
def test_own_sizes_are_those_of_count_parameters(recipe: str) -> None:
    tool = runpy.run_path(str(Path(__file__).resolve().parents[3] / "tools" / "measure" / "count_parameters.py"))
    table = next(table for table in published_tables(recipe, {}) if table.title == SIZES)
    rows = [[*row.name, *(cell.text for cell in row.cells)] for row in table.rows]
    counted = [row for row in rows if not row[1].startswith("quoted")]
    assert [row[0].lower() for row in counted] == {"flickr8k": ["base", "large"]}.get(recipe, ["large"])
    for model, origin, trained_millions, total_millions in ((row[0].lower(), *row[1:]) for row in counted):
        assert "`tools/measure/count_parameters.py`" in origin
        clip = {"base": "ViT-B-32-quickgelu", "large": "ViT-L-14-quickgelu"}[model]
        frozen, *shape = tool["frozen_parameters"](tool["SHAPES"][model]["hubert"], clip)
        trained = dict(tool["trained_rows"](model, *shape))
        heads = [trained["cascaded"], trained["parallel"]]
        assert trained_millions == " – ".join(f"{count / 1e6:.2f}" for count in heads)
        assert total_millions == " – ".join(f"{(count + frozen) / 1e6:.1f}" for count in heads)


def test_published_tables_need_no_rows() -> None:
    text = render([], "flickr8k", "# Results\n\n<!-- tables: published -->\n", "")
    assert "26.74" in text and "not run: `./run.sh --model base" in text and text.count("### Published") == 3
    assert render([], "mini", "# Results\n\n<!-- tables: published -->\n", "") == "# Results\n"


@pytest.mark.parametrize(
    ("head", "name", "coarse"),
    [
        ("fast_vgs", "FaST-style (CLIP patches)", "FaST-style (CLIP patches)"),
        ("reranker", "reranker", "reranker (coarse)"),
        ("parallel", "parallel + reranker", "parallel"),
    ],
)
def test_rows_of_two_stages_have_their_names(head: str, name: str, coarse: str, tmp_path: Path) -> None:
    scores = Scores(tmp_path / "retrieval.json", {"coarse_to_fine": {"name": name, "top_k": 9}})
    assert coarse_head(head, scores) == coarse
    assert [row for row, _ in second_stage_scores(head, scores)] == [f"{name} (coarse to fine, K=9)"]
    assert coarse_head(head, Scores(tmp_path / "retrieval.json", {})) == head
