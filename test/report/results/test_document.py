"""RESULTS.md: the tables of runs, a user's file, and the committed file of a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from result_runs import COMMIT, Make, retrieval_scores, write

from speechclip.common.errors import MissingFileError, UserError
from speechclip.report.results import keyword_tables as keywords
from speechclip.report.results.document import SECTIONS, commit_results, render, update_results
from speechclip.report.results.heads_table import heads_tables
from speechclip.report.results.keyword_tables import keyword_tables
from speechclip.report.results.language_tables import language_tables
from speechclip.report.results.retrieval_tables import retrieval_tables
from speechclip.report.results.rows import ResultRow, read_rows, rows_of_run
from speechclip.report.results.spotting_tables import spotting_tables
from speechclip.report.results.test_set_tables import test_set_tables as further_tables
from speechclip.report.runs import Run, load_run
from speechclip.report.tables import Table

ROOT = Path(__file__).resolve().parents[3]


def rows_of(*runs: Run) -> list[ResultRow]:
    return [row for run in runs for row in rows_of_run(run, "mini")]


def cells_of(table: Table, head: str, seed: str = "0") -> dict[str, str]:
    """The printed cells of a row, without absent ones."""
    names = [dict(zip(table.name_columns, row.name, strict=True)) for row in table.rows]
    (row,) = [row for row, name in zip(table.rows, names, strict=True) if (name["head"], name["seed"]) == (head, seed)]
    cells = {
        column: f"{cell.text} {cell.interval}".strip() for column, cell in zip(table.columns, row.cells, strict=True)
    }
    return {column: text for column, text in cells.items() if text != "–"}


def test_retrieval_tables_by_hand(make: Make) -> None:
    images, own = retrieval_tables(rows_of(make("tiny_cascaded", 40)))  # there is no "any caption" direction
    assert cells_of(images, "cascaded") == {
        "S→I R@1": "40.00", "S→I R@5": "50.00", "S→I R@10": "60.00", "I→S R@1": "41.00", "I→S R@5": "51.00",
        "I→S R@10": "61.00", "mean R@10": "60.50",
    }  # fmt: skip
    topline = {"S→I R@1": "70.00", "S→I R@5": "80.00", "S→I R@10": "90.00"}
    assert cells_of(images, "*text→image topline*", "") == topline
    assert cells_of(images, "*chance*", "") == {
        "S→I R@1": "0.004", "S→I R@5": "0.02", "S→I R@10": "5.00", "I→S R@1": "0.004", "I→S R@5": "0.02",
        "I→S R@10": "5.00", "mean R@10": "5.00",
    }  # fmt: skip
    assert own.title == "Speech and captions, own caption" and cells_of(own, "cascaded")["S→T R@1"] == "42.00"


def test_language_tables_by_hand(make: Make) -> None:
    assert language_tables(rows_of(make("tiny_parallel", 40))) == []
    run = make("tiny_parallel_en_es", 40)
    scores = json.loads(run.retrieval.path.read_text())
    own = {key: scores[key] for key in ("speech->image", "image->speech", "mean_R@10", "random", "text->image")}
    spanish = {**own, "speech->image": {**own["speech->image"], "R@1": 7.0}}
    across = {"R@1": 12.0, "R@5": 20.0, "R@10": 30.0, "MRR": 15.0}
    chance = {"R@1": 0.5, "R@5": 2.5, "R@10": 5.0, "MRR": 3.0}
    scores |= {"languages": {"en": own, "es": spanish}, "across_languages": {"en->es": {**across, "random": chance}}}
    run.retrieval.path.write_text(json.dumps(scores))
    each, between = language_tables(rows_of(load_run(run.directory)))
    assert cells_of(each, "parallel (en)")["S→I R@1"] == "40.00"
    assert cells_of(each, "parallel (es)")["S→I R@1"] == "7.00"
    assert cells_of(each, "parallel (es)")["mean R@10"] == "60.50"
    assert cells_of(each, "*chance* (es)", "")["I→S R@10"] == "5.00"
    assert cells_of(each, "*text→image topline* (en)", "")["S→I R@1"] == "70.00"
    assert cells_of(between, "parallel (en → es)") == {"R@1": "12.00", "R@5": "20.00", "R@10": "30.00", "MRR": "15.00"}
    assert cells_of(between, "*chance* (en → es)", "")["R@5"] == "2.50"


def test_test_set_tables_by_hand(make: Make) -> None:
    assert further_tables(rows_of(make("tiny_parallel", 40))) == []
    run = make("tiny_parallel", 40)
    origin = run.retrieval.get("provenance")
    windows = {**retrieval_scores(23.0), "seconds": 10.0, "hop": 5.0, "windows": 9}
    unseen_scores = {**retrieval_scores(30.0), "provenance": origin}
    long_scores = {**retrieval_scores(20.0), "windows": windows, "provenance": origin}
    for name, scores in (("test_unseen", unseen_scores), ("test_long", long_scores)):
        write(run.directory / "scores" / name / "retrieval.json", scores)
    rows = rows_of(load_run(run.directory))
    long, unseen = further_tables(rows)
    assert (long.title, unseen.title) == ("Speech and images: test_long", "Speech and images: test_unseen")
    assert cells_of(unseen, "parallel")["S→I R@1"] == "30.00" and cells_of(unseen, "parallel")["I→S R@10"] == "51.00"
    assert cells_of(long, "parallel")["S→I R@1"] == "20.00"
    assert cells_of(long, "parallel (in windows of 10 s)")["I→S R@5"] == "34.00"
    assert cells_of(long, "*chance*", "")["S→I R@10"] == "5.00"
    assert cells_of(retrieval_tables(rows)[0], "parallel")["S→I R@1"] == "40.00"  # of the test set only
    (run.directory / "RESULTS.md").write_text("")
    assert [row.step for row in update_results(run.directory / "RESULTS.md", [load_run(run.directory)], "places")] == [
        "train", "retrieval", "retrieval test_long", "retrieval test_unseen"
    ]  # fmt: skip
    assert [row.further_set for row in read_rows(run.directory / "results.jsonl")][2:] == ["test_long", "test_unseen"]
    text = (run.directory / "RESULTS.md").read_text()
    assert "### Speech and images: test_unseen" in text and "| retrieval test_unseen |" in text
    assert long.note.startswith("In windows") and not unseen.note
    write(run.directory / "scores/test_long/retrieval.json", {**long_scores, "provenance": {**origin, "seed": 9}})
    with pytest.raises(UserError, match="test_long/retrieval.json: made with another seed"):
        load_run(run.directory)


def test_spotting_tables_by_hand(make: Make) -> None:
    run = make("tiny_cascaded", 40, rate=30.0)
    assert spotting_tables(rows_of(run)) == []
    chance = {"P@10": 5.0, "P@N": 5.0, "EER": 50.0, "AP": 5.5}
    row = {"P@10": 60.0, "P@N": 40.0, "EER": 20.0, "AP": 45.0, "ci95": {"AP": [41.0, 49.0]}, "chance": chance}
    row |= {"keywords": {"red": chance}, "n_keywords": 1, "n_utterances": 600}
    spoken = {**row, "AP": 30.0, "chance": {**chance, "AP": 6.5}}
    scores = {"written": {"exact": row, "semantic": {**row, "AP": 50.0}}, "spoken": {"exact": spoken}}
    scores["attention"] = {"exact": {**row, "AP": 12.0}}
    write(run.directory / "scores/spotting.json", {**scores, "provenance": run.retrieval.get("provenance")})
    rows = rows_of(load_run(run.directory))
    assert "red" not in str(rows[-1].scores.content)  # scores of each keyword stay in the run
    exact, semantic = spotting_tables(rows)
    measured = {"P@10": "60.0", "P@N": "40.0", "EER": "20.0", "AP": "45.0 [41.0, 49.0]"}
    assert cells_of(exact, "cascaded (written)") == measured
    assert cells_of(exact, "cascaded (spoken)")["AP"] == "30.0 [41.0, 49.0]"
    assert cells_of(exact, "cascaded (attention)")["AP"] == "12.0 [41.0, 49.0]"
    assert cells_of(exact, "*chance*", "") == {"P@10": "5.0", "P@N": "5.0", "EER": "50.0", "AP": "5.5"}
    assert cells_of(exact, "*chance* (spoken)", "")["AP"] == "6.5" and len(exact.rows) == 5
    assert cells_of(semantic, "cascaded (written)")["AP"] == "50.0 [41.0, 49.0]" and len(semantic.rows) == 2


def test_heads_table_by_hand(make: Make) -> None:
    runs = [make("tiny_hybrid_plus", 40, rate=30.0), make("tiny_parallel", 50)]
    scores = json.loads(runs[0].retrieval.path.read_text())
    scores["speech->image"]["ci95"] = {"R@1": [37.04, 43.0]}
    branch = {name: {**row, "R@1": 7.0} for name, row in scores.items() if "speech" in name}
    scores |= {"branch": "parallel", "branches": {"cascaded": {**branch, "mean_R@10": 33.0}}}
    runs[0].retrieval.path.write_text(json.dumps(scores))
    rows = rows_of(load_run(runs[0].directory), runs[1])
    (table,) = heads_tables(rows)
    assert cells_of(table, "hybrid_plus") == {
        "parameters": "7,483,917", "training s": "61", "S→I R@1": "40.0 [37.0, 43.0]", "S→I R@10": "60.0",
        "I→S R@1": "41.0", "I→S R@10": "61.0", "keywords": "6.2", "distinct": "80.0 [79.0, 82.0]",
        "content_top1": "32.5 [30.0, 33.0]", "boundary F1": "18.0 [17.0, 19.0]", "R-value": "27.0",
    }  # fmt: skip
    assert cells_of(table, "hybrid_plus (cascaded branch)") == {
        "S→I R@1": "7.0 [37.0, 43.0]", "S→I R@10": "60.0", "I→S R@1": "7.0", "I→S R@10": "61.0",
    }  # fmt: skip
    assert "keywords" not in cells_of(table, "parallel")
    images = retrieval_tables(rows)[0]
    assert cells_of(images, "hybrid_plus (cascaded branch)")["mean R@10"] == "33.00"


HITS = "Keyword hit rate, "
ALL, REFERENCE = keywords.SWEEPS


@pytest.mark.parametrize(
    ("title", "head", "cells"),
    [
        (f"{HITS}clean", "cascaded", {"kw1": "30.0", "kw2": "31.0", "avg": "30.5"}),
        (f"{HITS}content_top1", "cascaded", {"kw1": "32.0", "kw2": "33.0", "avg": "32.5"}),
        (f"{HITS}clean", "*frequency prior* (cascaded)", {"kw1": "9.0", "kw2": "9.0", "avg": "9.0"}),
        (f"{HITS}clean", "*shuffled speech* (cascaded)", {"kw1": "3.0", "avg": "3.0"}),
        (ALL, "cascaded", {"K=1": "31.0 [30.0, 32.0]", "K=5": "35.0 [34.0, 36.0]", "K=20": "50.0 [49.0, 51.0]",
                           "content K=10": "30.0 [29.0, 31.0]"}),
        (ALL, "*shuffled speech* (cascaded)", {"K=1": "4.0", "K=5": "4.0", "K=20": "4.0", "content K=10": "4.0"}),
        (REFERENCE, "cascaded", {"K=5": "39.0 [38.0, 40.0]", "content K=1": "21.0 [20.0, 22.0]"}),
        (keywords.FLAWS, "cascaded", {
            "clean": "30.0 [29.0, 31.0]", **dict.fromkeys(keywords._FLAWS, "+2.0 [+1.0, +3.0]"), "only special": "1.5",
        }),
        (keywords.FLAWS, "*shuffled speech* (cascaded)", {"clean": "4.0", **dict.fromkeys(keywords._FLAWS, "+1.5")}),
        (keywords.FLAWS, "*frequency prior* (cascaded)", {"clean": "9.0", **dict.fromkeys(keywords._FLAWS, "-1.0")}),
        (keywords.WORDS, "cascaded", {
            "precision": "30.0", "recall": "20.0", "F1": "24.0 [23.0, 25.0]", "whole F1": "12.0",
            "cosine × 100": "38.1", "duplicates": "17.0", "named": "32.0", "overlap": "85.0 [83.0, 87.0]",
            "boundary F1": "18.0 [17.0, 19.0]",
        }),
        (keywords.WORDS, "*random position* (cascaded)", {"overlap": "29.0"}),
        (keywords.WORDS, "*evenly spaced* (cascaded)", {"boundary F1": "14.6"}),
        (keywords.WORDS, "*frequency prior* (cascaded)", {
            "precision": "30.0", "recall": "20.0", "F1": "11.0", "whole F1": "12.0", "cosine × 100": "30.0",
            "duplicates": "4.0", "named": "11.0", "overlap": "39.0",
        }),
        (keywords.BOUNDARIES, "cascaded", {"precision": "20.0", "recall": "16.0", "F1": "18.0",
                                           "over-segmentation": "-20.0", "R-value": "27.0"}),
        (keywords.BOUNDARIES, "*evenly spaced* (cascaded)", {"precision": "20.0", "recall": "16.0", "F1": "14.6",
                                                             "over-segmentation": "-20.0", "R-value": "27.0"}),
    ],
)  # fmt: skip
def test_keyword_tables_by_hand(make: Make, title: str, head: str, cells: dict[str, str]) -> None:
    tables = {table.title: table for table in keyword_tables(rows_of(make("tiny_cascaded", 40, rate=30.0)))}
    assert len(tables) == 8
    assert cells_of(tables[title], head) == cells


def test_long_heads_show_their_first_keywords(make: Make) -> None:
    run = make("tiny_cascaded_plus", 40, rate=30.0)
    assert run.keywords is not None
    content = {**run.keywords.content, "clean": {f"kw{n}": float(n) for n in range(1, 31)} | {"avg": 15.5}}
    run.keywords.path.write_text(json.dumps(content))
    table = keyword_tables(rows_of(load_run(run.directory)))[0]
    assert list(table.columns) == [*(f"kw{number}" for number in range(1, 17)), "avg"]


def test_user_tables_and_data_are_next_to_each_other(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "exp" / "RESULTS.md"
    for seed, value in enumerate((60.0, 61.5, 66.0)):
        update_results(out, [make(f"tiny_parallel_seed{seed}", value, seed)], "mini")
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# Results\n") and "62.50 ± 3.12" in text and "Published" not in text
    assert len((tmp_path / "exp" / "results.jsonl").read_text().splitlines()) == 6
    # a run at another commit replaces its rows and does not enter the mean of the other seeds
    update_results(out, [make("tiny_parallel_seed0", 10.0, 0, commit="f" * 40)], "mini")
    text = out.read_text(encoding="utf-8")
    assert len((tmp_path / "exp" / "results.jsonl").read_text().splitlines()) == 6
    assert "mean of 3" not in text and "63.75 ± 3.18" in text and "60.00" not in text
    assert "| fffffff (5e7719) |" in text and "| 0123456 (5e7719) |" in text


def test_the_same_run_twice_gives_the_same_files(make: Make, tmp_path: Path) -> None:
    run, out = make("tiny_cascaded", 40, rate=30.0), tmp_path / "RESULTS.md"
    update_results(out, [run], "flickr8k")
    first = [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir()) if path.is_file()]
    update_results(out, [run], "flickr8k")
    assert [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir()) if path.is_file()] == first
    assert [name for name, _ in first] == ["RESULTS.md", "results.jsonl"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("speech->image",), "the key 'speech->image' is missing"),
        (("image->speech", "R@5"), "the key 'R@5' is missing in 'image->speech'"),
        (("random", "speech->text"), "the key 'speech->text' is missing in 'random'"),
        (("mean_R@10",), "the key 'mean_R@10' is missing"),
    ],
)
def test_a_missing_score_writes_nothing(make: Make, tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    run = make("tiny_parallel", 40)
    content = json.loads(run.retrieval.path.read_text())
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    del holder[keys[-1]]
    run.retrieval.path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="retrieval.json: " + re.escape(message)):
        update_results(tmp_path / "RESULTS.md", [load_run(run.directory)], "mini")
    assert not list(tmp_path.glob("*.*"))


def recipe(folder: Path) -> Path:
    folder.mkdir()
    (folder / "RESULTS.template.md").write_text(
        "# Mine\n\nText.\n\n<!-- tables: retrieval -->\n\n<!-- tables: keywords -->\n"
    )
    return folder


def test_committed_results_keep_other_commits(make: Make, tmp_path: Path) -> None:
    folder = recipe(tmp_path / "mini")
    commit_results(folder, [make("tiny_parallel", 40)])
    commit_results(folder, [make("tiny_parallel", 50, commit="f" * 40)])
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith(
        "<!-- Rendered from RESULTS.template.md and results.jsonl by `python -m speechclip.bin.results"
    )
    assert "# Mine\n\nText.\n" in text and "Keyword hit rate" not in text
    assert re.findall(r"\|    0 \| (\w+) \(5e7719\) \| +([\d.]+)", text)[:2] == [
        ("0123456", "40.00"),
        ("fffffff", "50.00"),
    ]
    rows = commit_results(folder, [make("tiny_parallel", 60, commit="e" * 40)], replace=True)
    assert {row.commit for row in rows} == {"e" * 40}
    assert "40.00" not in (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_an_edited_template_is_rendered_again(make: Make, tmp_path: Path) -> None:
    folder = recipe(tmp_path / "mini")
    commit_results(folder, [make("tiny_parallel", 40)])
    data = (folder / "results.jsonl").read_bytes()
    (folder / "RESULTS.template.md").write_text("# New\n\n<!-- tables: retrieval -->\n")
    commit_results(folder, [])
    assert "# New\n" in (folder / "RESULTS.md").read_text() and "40.00" in (folder / "RESULTS.md").read_text()
    assert (folder / "results.jsonl").read_bytes() == data


def test_commit_refuses_uncommitted_code(make: Make, tmp_path: Path) -> None:
    folder = recipe(tmp_path / "mini")
    for options in ({"commit": f"{COMMIT[:12]}-dirty"}, {"trained_at": f"{COMMIT[:12]}-dirty"}):
        with pytest.raises(UserError, match="made by uncommitted code"):
            commit_results(folder, [make("tiny_parallel", 40, **options)])
    assert [path.name for path in folder.iterdir()] == ["RESULTS.template.md"]
    with pytest.raises(MissingFileError, match="RESULTS.template.md: is missing"):
        commit_results(tmp_path, [])


def test_unknown_section_of_a_template_is_named() -> None:
    with pytest.raises(UserError, match="T.md: line 3: unknown section 'songs'. Known: heads, retrieval"):
        render([], "mini", "# T\n\n<!-- tables: songs -->\n", "T.md")


def test_commands_share_a_row_over_seeds(make: Make) -> None:
    options = {"recipe_command": "./run.sh --seed '0 1'", "rate": 30.0}
    rows = rows_of(make("tiny_cascaded", 40, **options), make("tiny_cascaded_seed1", 41, 1, **options))
    text = render(rows, "mini", "<!-- tables: commands -->\n", "")
    lines = [re.sub(" +", " ", line)[20:] for line in text.splitlines() if line.startswith("| tiny")]
    assert lines == [
        "0 | train | 0123456789ab | 7,483,917 trained parameters | `train --seed 0` |",
        "1 | train | 0123456789ab | 7,483,917 trained parameters | `train --seed 1` |",
        "0, 1 | retrieval | 0123456789ab | 1,000 utterances, 200 images | `./run.sh --seed '0 1'` |",
        "0, 1 | keywords | 0123456789ab | 1,000 utterances | `./run.sh --seed '0 1'` |",
    ]


def test_commit_results_adds_some_steps(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "RESULTS.template.md").write_text("<!-- tables: retrieval -->\n")
    commit_results(folder, [make("tiny_cascaded", 40, rate=30.0)])
    later = make("tiny_cascaded", 50, rate=60.0, commit="fedc" * 10, trained_at=COMMIT)
    rows = commit_results(folder, [later], steps=["keywords"])
    found = [(row.step, row.commit[:4]) for row in rows]
    assert found == [("train", "0123"), ("retrieval", "0123"), ("keywords", "0123"), ("keywords", "fedc")]
    with pytest.raises(UserError, match=r"no run has the step 'spotting' \(steps: train, retrieval, keywords\)"):
        commit_results(folder, [later], steps=["spotting"])


@pytest.mark.parametrize("name", ["mini", "flickr8k", "spokencoco", "places"])
def test_committed_files_are_rendered_from_their_data(name: str, tmp_path: Path) -> None:
    committed = ROOT / "egs" / name
    folder = tmp_path / name
    folder.mkdir()
    for file in ("RESULTS.template.md", "results.jsonl"):
        if (committed / file).exists():
            (folder / file).write_bytes((committed / file).read_bytes())
    commit_results(folder, [])
    assert (folder / "RESULTS.md").read_text() == (committed / "RESULTS.md").read_text()
    used = re.findall(r"<!-- tables: (\w+) -->", (committed / "RESULTS.template.md").read_text())
    assert set(used) <= set(SECTIONS)
