"""The paper's tables: quoted rows marked, own rows beside them, empty rows with their command."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest

from speechclip.report.results.markdown import read_block
from speechclip.report.results.published import SIZES, TABLES, published_tables
from speechclip.report.results.update import merge

COLUMNS = [f"{short} R@{k}" for short in ("S→I", "I→S") for k in (1, 5, 10)]


def own(model: str, head: str, value: float, seed: str = "0", tag: str = "") -> dict[str, str]:
    row = {"model": model, "head": head, "seed": seed, **dict.fromkeys(COLUMNS, f"{value:.2f}")}
    return {**row, "tag": tag} if tag else row


def test_every_line_has_as_many_numbers_as_columns_and_says_where_they_are_from() -> None:
    for table in TABLES:
        for line in table.lines:
            assert len(line.numbers) in (0, len(table.columns)), line.name
            assert line.source.startswith("quoted") and (line.numbers or line.own)
            if "avg" in table.columns and line.numbers:
                assert abs(sum(line.numbers[:-1]) / 8 - line.numbers[-1]) < 0.06, line.name


def test_a_row_of_the_project_stands_below_the_quoted_one_and_an_empty_one_names_its_command() -> None:
    rows = [own("large", "parallel", 30.0), own("large", "parallel", 99.0, tag="mine")]
    table = published_tables("spokencoco", {"Speech and images": rows})[0]
    lines = [(row["model"], row["origin"], row.get("S→I R@1", "")) for row in table.rows]
    assert lines[2:] == [
        ("SpeechCLIP Parallel Large", "quoted: Shih et al. 2022", "35.8"),
        ("SpeechCLIP Parallel Large", "this project, seed 0", "30.00"),
        ("SpeechCLIP Cascaded Large", "quoted: Shih et al. 2022", "6.4"),
        ("SpeechCLIP Cascaded Large", "not run: `./run.sh --model large --head cascaded`", ""),
    ]
    assert [row["origin"] for row in table.rows[:2]] == ["quoted: Peng and Harwath 2022, in Shih et al. 2022"] * 2


def test_the_mean_over_seeds_goes_before_a_seed() -> None:
    rows = [
        own("large", "parallel", 30.0),
        own("large", "parallel", 31.0, "1"),
        own("large", "parallel", 30.5, "mean of 2"),
    ]
    table = published_tables("spokencoco", {"Speech and images": rows})[0]
    assert [(row["origin"], row["S→I R@1"]) for row in table.rows if row["origin"].startswith("this")] == [
        ("this project, mean of 2", "30.50")
    ]


def test_the_authors_checkpoint_scored_here_stands_below_the_own_row() -> None:
    rows = [own("large", "parallel", 34.0, "unknown", tag="published")]
    table = published_tables("spokencoco", {"Speech and images": rows})[0]
    lines = [
        (row["origin"], row.get("S→I R@1", "")) for row in table.rows if row["model"] == "SpeechCLIP Parallel Large"
    ]
    assert lines == [
        ("quoted: Shih et al. 2022", "35.8"),
        ("not run: `./run.sh --model large --head parallel`", ""),
        ("the authors' checkpoint, scored here", "34.00"),
    ]


def test_the_supervised_topline_has_its_command() -> None:
    table = published_tables("spokencoco", {})[1]
    assert table.rows[-1]["origin"] == "not run: `./run.sh --model large --head parallel --supervision text`"
    assert table.rows[-2]["T→S R@10"] == "99.93"


def test_chance_stands_beside_the_quoted_one_for_each_protocol() -> None:
    table = next(table for table in published_tables("spokencoco", {}) if "zero-shot" in table.title)
    rows = [list(row.values()) for row in table.rows if row["model"] == "Random"]
    assert rows[0][2:5] == ["0.02", "0.10", "0.20"]
    caption = [f"{100 * k / 25_031:.3f}" for k in (1, 5, 10)]  # one right answer
    image = [f"{100 * (1 - math.comb(25_031 - 5, k) / math.comb(25_031, k)):.3f}" for k in (1, 5, 10)]  # five
    assert rows[1:] == [
        ["Random", "computed: any caption of the image, 25,031 of 5,000 images", *image, *image],
        ["Random", "computed: own caption, 25,031 of 5,000 images", *caption, *caption],
    ]
    assert image[0] == "0.020" and caption[0] == "0.004"


def test_keywords_are_given_as_either_counts_and_say_which() -> None:
    columns = [*(f"kw{number}" for number in range(1, 9)), "avg"]
    own_tables = {
        f"Keyword hit rate, {score}": [
            {"model": "large", "head": "cascaded", "seed": "0", **({"tag": tag} if tag else {}),
             **dict.fromkeys(columns, value)}
            for tag, value in (("", number), ("published", number + ".5"))
        ]
        for score, number in (("reference", "40"), ("clean", "20"), ("content_top1", "9"))
    }  # fmt: skip
    table = next(table for table in published_tables("spokencoco", own_tables) if "keyword" in table.title)
    assert [(row["origin"], row["avg"]) for row in table.rows] == [
        ("quoted: Shih et al. 2022", "38.2"),
        ("this project, seed 0, reference", "40"),
        ("this project, seed 0, clean", "20"),
        ("the authors' checkpoint, scored here, reference", "40.5"),
        ("the authors' checkpoint, scored here, clean", "20.5"),
    ]
    empty = next(table for table in published_tables("spokencoco", {}) if "keyword" in table.title)
    assert [row["origin"] for row in empty.rows][1:] == ["not run: `./run.sh --model large --head cascaded`"]


@pytest.mark.parametrize("recipe", ["flickr8k", "spokencoco"])
def test_own_sizes_are_what_the_command_beside_them_counts(recipe: str) -> None:
    tool = runpy.run_path(str(Path(__file__).resolve().parents[3] / "tools" / "count_parameters.py"))
    table = next(table for table in published_tables(recipe, {}) if table.title == SIZES)
    counted = [row for row in table.rows if not row["origin"].startswith("quoted")]
    assert [row["model"].lower() for row in counted] == {"flickr8k": ["base", "large"]}.get(recipe, ["large"])
    for row in counted:
        assert "`tools/count_parameters.py`" in row["origin"]
        model = row["model"].lower()
        clip = {"base": "ViT-B-32-quickgelu", "large": "ViT-L-14-quickgelu"}[model]
        frozen, *shape = tool["frozen_parameters"](tool["SHAPES"][model]["hubert"], clip)
        trained = dict(tool["trained_rows"](model, *shape))
        heads = [trained["cascaded"], trained["parallel"]]
        assert row["trained"] == " – ".join(f"{count / 1e6:.2f}" for count in heads)
        assert row["total"] == " – ".join(f"{(count + frozen) / 1e6:.1f}" for count in heads)


def test_a_results_file_gets_the_tables_once_and_keeps_its_text() -> None:
    text = merge("# Results\n\nMine.\n", [], recipe="flickr8k")
    assert text.startswith("# Results\n\nMine.\n") and "26.74" in text and "not run: `./run.sh --model base" in text
    assert merge(text, [], recipe="flickr8k") == text
    tables = read_block(text, "published", "f")
    assert len(tables) == 3 and tables[SIZES].columns == ("model", "origin", "trained", "total")
    assert merge("# Results\n", [], recipe="mini") == "# Results\n"
