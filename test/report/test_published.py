"""The paper's tables: quoted rows marked, own rows beside them, empty rows with their command."""

from __future__ import annotations

from speechclip.report.markdown import read_block
from speechclip.report.published import TABLES, published_tables
from speechclip.report.results import merge

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


def test_a_results_file_gets_the_tables_once_and_keeps_its_text() -> None:
    text = merge("# Results\n\nMine.\n", [], recipe="flickr8k")
    assert text.startswith("# Results\n\nMine.\n") and "26.74" in text and "not run: `./run.sh --model base" in text
    assert merge(text, [], recipe="flickr8k") == text
    assert len(read_block(text, "published", "f")) == 2
    assert merge("# Results\n", [], recipe="mini") == "# Results\n"
