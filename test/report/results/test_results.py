"""RESULTS.md: rows merged by model, head, tag and seed; means from the table itself; everything else kept."""

from __future__ import annotations

import copy
import json
import re
import statistics

import pytest

from speechclip.common.errors import UserError
from speechclip.report.results.markdown import parse_tables, read_block
from speechclip.report.results.update import update_results
from speechclip.report.runs import load_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def direction(r1, n=200):
    return {"R@1": r1, "R@5": r1 + 10, "R@10": r1 + 20, "MRR": r1 + 5, "n_queries": 1000, "n_gallery": n, "ci95": {}}


def retrieval_scores(r1, seed):
    names = ["speech->image", "image->speech", "speech->text", "text->speech"]
    scores = {name: direction(r1 + i) for i, name in enumerate(names)}
    scores["text->image"] = direction(70)
    level = {"R@1": 0.004, "R@5": 0.02, "R@10": 5.0, "MRR": 1.0}
    scores["random"] = {name: level for name in scores}
    scores["mean_R@10"] = r1 + 20.5
    scores["provenance"] = {"command": "score --data data/test | tee log", "seed": seed, "commit": COMMIT}
    return scores


def keyword_scores(rate, seed):
    rates = {"kw1": rate, "kw2": rate + 1, "avg": rate + 0.5}
    prior = {"kw1": 9.0, "kw2": 9.0, "avg": 9.0}
    names = ["clean", "reference", "content_top1"]
    return {
        **{name: {k: v + i for k, v in rates.items()} for i, name in enumerate(names)},
        "frequency_prior": dict.fromkeys(names, prior),
        "n_utterances": dict.fromkeys(names, 1000),
        "provenance": {"command": "score_keywords", "seed": seed, "commit": COMMIT},
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def make(tmp_path):
    """Write a scored run and load it."""

    def make_run(name, r1, seed=0, rate=None, **provenance):
        folder = tmp_path / "exp" / name
        scores = retrieval_scores(r1, seed)
        scores["provenance"] |= provenance
        write(folder / "scores" / "retrieval.json", scores)
        if rate is not None:
            write(folder / "scores" / "keywords.json", keyword_scores(rate, seed))
        training = {"command": f"train --seed {seed}", "seed": seed, "commit": COMMIT, "versions": {}}
        write(folder / "best" / "provenance.json", training | {"trained": 7483917, "train_seconds": 61.4})
        return load_run(folder)

    return make_run


@pytest.fixture
def results(tmp_path):
    return tmp_path / "RESULTS.md"


def rows_of(path, block, title):
    return list(read_block(path.read_text(encoding="utf-8"), block, str(path))[title].rows)


def test_a_new_file_holds_every_row(make, results):
    update_results(results, [make("tiny_cascaded", 40, rate=30.0)])
    assert results.read_text(encoding="utf-8").startswith("# Results\n")
    topline = {"model": "tiny", "head": "*text→image topline*"}
    chance = {"model": "tiny", "head": "*chance*"}
    recalls = {"S→I R@1": "40.00", "S→I R@5": "50.00", "S→I R@10": "60.00"}
    assert rows_of(results, "retrieval", "Speech and images") == [
        {"model": "tiny", "head": "cascaded", "seed": "0"}
        | recalls
        | {"I→S R@1": "41.00", "I→S R@5": "51.00", "I→S R@10": "61.00", "mean R@10": "60.50"},
        topline | {"S→I R@1": "70.00", "S→I R@5": "80.00", "S→I R@10": "90.00"},
        chance
        | {"S→I R@1": "0.004", "S→I R@5": "0.02", "S→I R@10": "5.00"}
        | {"I→S R@1": "0.004", "I→S R@5": "0.02", "I→S R@10": "5.00", "mean R@10": "5.00"},
    ]
    own = rows_of(results, "retrieval", "Speech and captions, own caption")
    assert [row["S→T R@1"] for row in own] == ["42.00", "0.004"]
    assert "any caption of the image" not in results.read_text(encoding="utf-8")
    assert rows_of(results, "keywords", "Keyword hit rate, content_top1") == [
        {"model": "tiny", "head": "cascaded", "seed": "0", "kw1": "32.0", "kw2": "33.0", "avg": "32.5"},
        {
            "model": "tiny",
            "head": "*frequency prior* (cascaded)",
            "seed": "0",
            "kw1": "9.0",
            "kw2": "9.0",
            "avg": "9.0",
        },
    ]


def test_the_prior_is_each_runs_own_and_replaces_that_of_older_versions(make, results):
    runs = [make("tiny_hybrid_plus", 40, rate=30.0), make("tiny_hybrid_plus_seed1", 42, 1, rate=30.0)]
    scores = json.loads((runs[1].directory / "scores" / "keywords.json").read_text())
    scores["frequency_prior"]["clean"]["kw2"] = 5.0  # other numbers of keywords than seed 0 has
    write(runs[1].directory / "scores" / "keywords.json", scores)
    update_results(results, [runs[0], load_run(runs[1].directory)])
    rows = rows_of(results, "keywords", "Keyword hit rate, clean")
    prior = {row["seed"]: row["kw2"] for row in rows if row["head"] == "*frequency prior* (hybrid_plus)"}
    assert prior == {"0": "9.0", "1": "5.0", "mean of 2": "7.0 ± 2.8"}
    text = results.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if re.search(r"prior\* \(hybrid_plus\) +\| +1 +\|", line))
    seedless = re.sub(r"\| +1 +\|", "| – |", line, count=1)
    results.write_text(text.replace(line, f"{line}\n{seedless}", 1), encoding="utf-8")
    assert any("seed" not in row for row in rows_of(results, "keywords", "Keyword hit rate, clean"))
    update_results(results, runs[:1])
    assert rows_of(results, "keywords", "Keyword hit rate, clean") == rows


def _with_keyword_extras(run):
    """A run of a hybrid head: intervals, a second branch, repetition and boundaries."""
    scores = json.loads((run.directory / "scores" / "retrieval.json").read_text())
    scores["speech->image"]["ci95"] = {"R@1": [37.04, 43.0], "R@10": [58.0, 62.0]}
    spoken = {key: scores[key] for key in ("speech->image", "image->speech", "speech->text", "text->speech")}
    spoken = {key: {**row, "R@1": row["R@1"] - 10, "ci95": {}} for key, row in spoken.items()}
    scores |= {"branch": "parallel", "branches": {"cascaded": {**spoken, "mean_R@10": 33.0}}}
    write(run.directory / "scores" / "retrieval.json", scores)
    keywords = json.loads((run.directory / "scores" / "keywords.json").read_text())
    keywords["repetition"] = {"keywords": 6.25, "distinct": 5.0, "duplicates": 20.0}
    measures = {"precision": 40.0, "recall": 25.31, "f1": 31.0, "over_segmentation": -36.72, "r_value": 44.44}
    keywords["segmentation"] = {**measures, "uniform": {name: value / 2 for name, value in measures.items()}}
    write(run.directory / "scores" / "keywords.json", keywords)
    return load_run(run.directory)


def test_heads_side_by_side(make, results):
    title = "Heads side by side"
    names = [("tiny_hybrid_plus", 40, 0), ("tiny_hybrid_plus_seed1", 42, 1)]
    runs = [_with_keyword_extras(make(name, r1, seed=seed, rate=30.0)) for name, r1, seed in names]
    assert [(run.model, run.head, run.tag) for run in runs] == [("tiny", "hybrid_plus", "")] * 2
    update_results(results, [*runs, make("tiny_parallel", 50)])
    rows = rows_of(results, "heads", title)
    assert rows[0] == {
        "model": "tiny", "head": "hybrid_plus", "seed": "0", "parameters": "7,483,917", "training s": "61",
        "S→I R@1": "40.0 [37.0, 43.0]", "S→I R@10": "60.0 [58.0, 62.0]", "I→S R@1": "41.0", "I→S R@10": "61.0",
        "keywords": "6.2", "distinct": "80.0", "content_top1": "32.5", "boundary F1": "31.0", "R-value": "44.4",
    }  # fmt: skip
    mean = next(row for row in rows if row["seed"] == "mean of 2" and row["head"] == "hybrid_plus")
    assert (mean["parameters"], mean["S→I R@1"], mean["distinct"]) == ("7,483,917", "41.0 ± 1.4", "80.0 ± 0.0")
    second = [row for row in rows if row["head"] == "hybrid_plus (cascaded branch)"]
    assert [row["S→I R@1"] for row in second] == ["30.0", "32.0", "31.0 ± 1.4"]
    assert [row for row in rows if row["head"] == "parallel"][0].keys() & {"keywords", "distinct"} == set()
    images = rows_of(results, "retrieval", "Speech and images")
    assert [row["S→I R@1"] for row in images if row["head"] == "hybrid_plus (cascaded branch)"][0] == "30.00"
    before = results.read_text(encoding="utf-8")
    update_results(results, [runs[1]])  # its rows are replaced, those of both branches, and the others stay
    assert results.read_text(encoding="utf-8") == before


def test_keywords_have_their_intervals_side_by_side_and_their_means_none(make, results):
    runs = []
    for name, seed in (("tiny_cascaded", 0), ("tiny_cascaded_seed1", 1)):
        run = _with_keyword_extras(make(name, 40 + seed, seed=seed, rate=30.0 + seed))
        keywords = json.loads((run.directory / "scores" / "keywords.json").read_text())
        keywords["ci95"] = {"content_top1": {"kw1": [1.0, 2.0], "avg": [31.44, 33.5]}}
        keywords["distinct"] = {"all": {"duplicates": 20.0, "ci95": {"duplicates": [17.0, 22.5]}}}
        keywords["segmentation"]["ci95"] = {"f1": [30.0, 32.0], "r_value": [43.25, 45.0], "recall": [0.0, 1.0]}
        write(run.directory / "scores" / "keywords.json", keywords)
        runs.append(load_run(run.directory))
    update_results(results, runs)
    rows = rows_of(results, "heads", "Heads side by side")
    first, second, mean = (row for row in rows if row["head"] == "cascaded")
    names = ("keywords", "distinct", "content_top1", "boundary F1", "R-value")
    assert [first[name] for name in names] == [
        "6.2", "80.0 [77.5, 83.0]", "32.5 [31.4, 33.5]", "31.0 [30.0, 32.0]", "44.4 [43.2, 45.0]"
    ]  # fmt: skip
    assert second["content_top1"] == "33.5 [31.4, 33.5]"
    assert [mean[name] for name in names] == ["6.2 ± 0.0", "80.0 ± 0.0", "33.0 ± 0.7", "31.0 ± 0.0", "44.4 ± 0.0"]


def test_keyword_times_as_word_boundaries(make, results):
    title, run = "Keyword times as word boundaries", make("tiny_cascaded", 41, rate=30.0)
    hybrid = _with_keyword_extras(make("tiny_hybrid_plus", 40, rate=30.0))
    update_results(results, [hybrid, run, make("tiny_parallel", 5)])
    own = {"precision": "40.0", "recall": "25.3", "F1": "31.0", "over-segmentation": "-36.7", "R-value": "44.4"}
    even = {"precision": "20.0", "recall": "12.7", "F1": "15.5", "over-segmentation": "-18.4", "R-value": "22.2"}
    named = {"model": "tiny", "seed": "0"}
    assert rows_of(results, "keywords", title) == [
        {**named, "head": "hybrid_plus", **own}, {**named, "head": "*evenly spaced* (hybrid_plus)", **even}
    ]  # fmt: skip
    other = _with_keyword_extras(make("tiny_hybrid_plus_seed1", 42, seed=1, rate=30.0))
    update_results(results, [_with_keyword_extras(run), other])
    rows = rows_of(results, "keywords", title)
    assert [(row["head"], row["seed"]) for row in rows] == [
        ("cascaded", "0"), ("hybrid_plus", "0"), ("hybrid_plus", "1"), ("hybrid_plus", "mean of 2"),
        ("*evenly spaced* (cascaded)", "0"), ("*evenly spaced* (hybrid_plus)", "0"),
        ("*evenly spaced* (hybrid_plus)", "1"), ("*evenly spaced* (hybrid_plus)", "mean of 2"),
    ]  # fmt: skip
    assert rows[3]["over-segmentation"] == "-36.7 ± 0.0"


def test_command_seed_and_commit_of_every_step(make, results):
    update_results(results, [make("tiny_cascaded", 40, seed=3, rate=30.0)])
    rows = rows_of(results, "provenance", "Commands")
    assert [(row["step"], row["seed"], row["commit"]) for row in rows] == [
        ("train", "3", "0123456789ab"),
        ("retrieval", "3", "0123456789ab"),
        ("keywords", "3", "0123456789ab"),
    ]
    assert [row["command"] for row in rows] == [
        "`train --seed 3`",
        r"`score --data data/test \| tee log`",
        "`score_keywords`",
    ]
    assert rows[0]["size"] == "7,483,917 trained parameters, 61 s"
    assert rows[1]["size"] == "1,000 utterances, 200 images"


def test_the_same_run_twice_leaves_the_same_file(make, results):
    run = make("tiny_cascaded", 40, rate=30.0)
    update_results(results, [run])
    first = results.read_bytes()
    update_results(results, [run])
    assert results.read_bytes() == first


def test_a_run_replaces_its_own_rows_and_no_others(make, results):
    runs = [
        make("tiny_cascaded_seed1", 40, 1, 30.0),
        make("tiny_parallel_seed1", 60, 1),
        make("base_parallel_seed1", 50, 1),
    ]
    update_results(results, runs)
    update_results(results, [make("tiny_parallel_seed1", 66, 1)])
    rows = rows_of(results, "retrieval", "Speech and images")
    assert [(r["model"], r["head"], r["S→I R@1"]) for r in rows if "seed" in r] == [
        ("base", "parallel", "50.00"),
        ("tiny", "cascaded", "40.00"),
        ("tiny", "parallel", "66.00"),
    ]
    assert len(rows_of(results, "keywords", "Keyword hit rate, clean")) == 2
    assert len(rows_of(results, "provenance", "Commands")) == 7


def test_the_order_of_the_runs_does_not_matter(make, tmp_path):
    runs = [
        make("tiny_cascaded_seed1", 40, 1, 30.0),
        make("tiny_parallel_seed10", 60, 10),
        make("tiny_parallel_seed2", 61, 2),
    ]
    update_results(tmp_path / "a.md", runs)
    for run in reversed(runs):
        update_results(tmp_path / "b.md", [run])
    assert (tmp_path / "a.md").read_text() == (tmp_path / "b.md").read_text()
    rows = rows_of(tmp_path / "a.md", "retrieval", "Speech and images")
    assert [row.get("seed") for row in rows] == ["1", "2", "10", "mean of 2", None, None]


def test_the_mean_over_seeds_comes_from_the_table(make, results):
    values = [60.0, 61.5, 66.0]
    for seed, value in enumerate(values):
        update_results(results, [make(f"tiny_cascaded_seed{seed}", value, seed, rate=value)])
    rows = rows_of(results, "retrieval", "Speech and images")
    means = [row for row in rows if row.get("seed") == "mean of 3"]
    assert len(means) == 1
    assert means[0]["S→I R@1"] == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" == "62.50 ± 3.12"
    assert rows_of(results, "keywords", "Keyword hit rate, clean")[3]["kw1"] == "62.5 ± 3.1"
    # a row that a person takes out no longer counts
    text = results.read_text(encoding="utf-8").splitlines(keepends=True)
    results.write_text("".join(line for line in text if "66.00" not in line), encoding="utf-8")
    update_results(results, [make("tiny_cascaded_seed0", 60.0, 0, rate=60.0)])
    rows = rows_of(results, "retrieval", "Speech and images")
    assert [row["S→I R@1"] for row in rows if "mean" in row.get("seed", "")] == ["60.75 ± 1.06"]


def test_weights_of_unknown_seed_say_so_and_enter_no_mean(make, results):
    published = {"model": "base", "head": "parallel", "tag": "published"}
    runs = [make("flickr_base_ckpt", 40, seed=None, **published), make("other_ckpt", 50, seed=3, **published)]
    update_results(results, runs)
    rows = rows_of(results, "retrieval", "Speech and images")
    assert [row["seed"] for row in rows if "seed" in row] == ["3", "unknown"]
    assert {row["seed"] for row in rows_of(results, "provenance", "Commands")} == {"3", "unknown"}
    update_results(results, runs)  # its rows are replaced as any other's
    assert rows_of(results, "retrieval", "Speech and images") == rows


def test_one_seed_has_no_mean(make, results):
    update_results(results, [make("tiny_parallel", 60), make("tiny_parallel_small_seed1", 60, 1)])
    assert "mean of" not in results.read_text(encoding="utf-8")


def test_a_mean_is_taken_only_of_what_all_seeds_have(make, results):
    first = make("tiny_parallel_seed1", 60, 1)
    content = copy.deepcopy(dict(first.retrieval.content))
    del content["text->speech"]
    write(first.retrieval.path, content)
    update_results(results, [load_run(first.directory), make("tiny_parallel_seed2", 62, 2)])
    mean = rows_of(results, "retrieval", "Speech and captions, own caption")[2]
    assert mean == {
        "model": "tiny",
        "head": "parallel",
        "seed": "mean of 2",
        **{"S→T R@1": "63.00 ± 1.41", "S→T R@5": "73.00 ± 1.41", "S→T R@10": "83.00 ± 1.41"},
    }


def test_a_tag_has_its_own_rows_and_column(make, results):
    update_results(results, [make("tiny_parallel", 60)])
    assert "tag" not in results.read_text(encoding="utf-8")
    update_results(results, [make("tiny_parallel_fp16", 61), make("tiny_parallel_x", 62, tag="sup")])
    rows = rows_of(results, "retrieval", "Speech and images")
    assert [(r.get("tag", ""), r["S→I R@1"]) for r in rows if "seed" in r] == [
        ("", "60.00"),
        ("fp16", "61.00"),
        ("sup", "62.00"),
    ]


def test_rows_of_lost_keywords_go(make, results):
    run = make("tiny_cascaded", 40, rate=30.0)
    other = make("tiny_cascaded_seed1", 40, 1, rate=30.0)
    update_results(results, [run, other])
    run.directory.joinpath("scores/keywords.json").unlink()
    update_results(results, [load_run(run.directory)])
    assert [row.get("seed") for row in rows_of(results, "keywords", "Keyword hit rate, clean")] == ["1", "1"]


def test_hand_written_text_stays(make, results):
    results.write_text("# Mini\n\nWhat we saw: *much*.\n\n| a | b |\n| - | - |\n| 1 | 2 |\n", encoding="utf-8")
    before = results.read_text(encoding="utf-8")
    update_results(results, [make("tiny_cascaded", 40, rate=30.0)])
    text = results.read_text(encoding="utf-8")
    assert text.startswith(before)
    text = (
        text.replace("<!-- results: begin keywords -->", "Between.\n\n<!-- results: begin keywords -->")
        + "\nAt the end.\n"
    )
    results.write_text(text, encoding="utf-8")
    update_results(results, [make("tiny_cascaded", 40, rate=30.0)])
    assert results.read_text(encoding="utf-8") == text


def test_a_parallel_head_makes_no_keyword_block(make, results):
    update_results(results, [make("tiny_parallel", 40)])
    assert "results: begin keywords" not in results.read_text(encoding="utf-8")
    # one that comes later stands ahead of the commands
    update_results(results, [make("tiny_cascaded", 40, rate=30.0)])
    marks = [
        line for line in results.read_text(encoding="utf-8").splitlines() if line.startswith("<!-- results: begin")
    ]
    assert [mark.split()[3] for mark in marks] == ["heads", "retrieval", "keywords", "provenance"]


def test_an_official_checkpoint_has_no_training_row(make, results):
    run = make("large_parallel", 40)
    run.directory.joinpath("best/provenance.json").unlink()
    update_results(results, [load_run(run.directory)])
    assert [row["step"] for row in rows_of(results, "provenance", "Commands")] == ["retrieval"]


def test_weights_from_elsewhere_tell_of_their_training_through_the_scores(make, results):
    training = {"command": "train there", "commit": "abc", "trained": 5000}
    run = make("large_parallel", 40, training=training, recipe_command="./run.sh --stage 4")
    run.directory.joinpath("best/provenance.json").unlink()
    update_results(results, [load_run(run.directory)])
    rows = rows_of(results, "provenance", "Commands")
    assert [(r["step"], r["commit"], r["size"]) for r in rows] == [
        ("train", "abc", "5,000 trained parameters"),
        ("retrieval", "0123456789ab", "1,000 utterances, 200 images"),
    ]
    assert [row.get("recipe command") for row in rows] == [None, "`./run.sh --stage 4`"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("<!-- results: end retrieval -->", ""), "have to stand once each"),
        (lambda text: text + "<!-- results: begin keywords -->", "have to stand once each"),
        (lambda text: text.replace("40.00 |", "", 1), "cells in a table of"),
        (lambda text: text.replace("40.00", "forty", 1), "'forty' under 'S→I R@1' is no number"),
        (lambda text: text.replace("### Speech and images", "### My table"), "'My table' is no table of the results"),
    ],
)
def test_a_damaged_file_is_refused_and_kept(make, results, damage, message):
    update_results(results, [make("tiny_parallel", 40)])
    damaged = damage(results.read_text(encoding="utf-8"))
    results.write_text(damaged, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        update_results(results, [make("tiny_parallel", 41, seed=1)])
    assert results.read_text(encoding="utf-8") == damaged
    assert [path.name for path in results.parent.iterdir() if path.is_file()] == ["RESULTS.md"]


def test_the_line_of_a_bad_row_is_named():
    with pytest.raises(UserError, match=r"R\.md: line 13: 1 cells in a table of 2 columns"):
        parse_tables("### T\n| a | b |\n| - | - |\n| 1 |\n", "R.md", first_line=10)


def test_a_file_that_is_not_utf8_is_refused(make, results):
    results.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        update_results(results, [make("tiny_parallel", 40)])


def test_two_folders_of_one_run_are_refused(make, results):
    with pytest.raises(UserError, match="tiny_parallel_seed0: has the model, head, tag and seed of .*tiny_parallel$"):
        update_results(results, [make("tiny_parallel", 40), make("tiny_parallel_seed0", 40)])
    assert not results.exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("provenance",), "no 'provenance'"),
        (("provenance", "command"), "no 'command' in 'provenance'"),
        (("provenance", "commit"), "no 'commit' in 'provenance'"),
        (("speech->image",), "no 'speech->image'"),
        (("image->speech", "R@5"), "no 'R@5' in 'image->speech'"),
        (("random", "speech->text"), "no 'speech->text' in 'random'"),
        (("mean_R@10",), "no 'mean_R@10'"),
    ],
)
def test_a_missing_key_is_named(make, results, keys, message):
    run = make("tiny_parallel", 40)
    content = copy.deepcopy(dict(run.retrieval.content))
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    del holder[keys[-1]]
    write(run.retrieval.path, content)
    with pytest.raises(UserError, match="retrieval.json: " + message):
        update_results(results, [load_run(run.directory)])
    assert not results.exists()


def test_bad_run_folders_are_refused(make, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "tiny_parallel").mkdir()
    with pytest.raises(UserError, match=r"scores/retrieval\.json: missing, stage 4 makes it"):
        load_run(tmp_path / "tiny_parallel")
    run = make("tiny_cascaded", 40, seed=1, rate=20.0)
    write(run.directory / "scores" / "keywords.json", keyword_scores(20.0, seed=2))
    with pytest.raises(UserError, match="made with another seed"):
        load_run(run.directory)
    write(run.directory / "best" / "provenance.json", {"command": "", "seed": 7, "commit": ""})
    with pytest.raises(UserError, match="run stage 4 again"):
        load_run(run.directory)
    run.retrieval.path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_run(run.directory)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny_parallel", ("tiny", "parallel", "")),
        ("tiny_parallel_seed2", ("tiny", "parallel", "")),
        ("large_cascaded_two_layers_seed2", ("large", "cascaded", "two_layers")),
        ("base_hybrid+_t0.1", ("base", "hybrid+", "t0.1")),
    ],
)
def test_names_of_folders(make, name, expected):
    run = make(name, 40)
    assert (run.model, run.head, run.tag) == expected


def test_provenance_names_a_run_before_its_folder_does(make):
    run = make("mine", 40, model="base", head="parallel")
    assert (run.model, run.head, run.tag) == ("base", "parallel", "")
    with pytest.raises(UserError, match="tells the model and the head"):
        make("mine", 40)


def with_ci(value, width=1.0, name="avg"):
    return {name: value, "ci95": {name: [value - width, value + width]}}


def full_keyword_scores(rate, seed):
    """What stage 5 writes of an aligned corpus, as far as tables show it."""
    beside = {"frequency_prior": {"avg": 9.0}, "shuffled_speech": {"avg": 4.0}}
    flaw = {**with_ci(rate + 2), "difference": {"avg": 2.0, "ci95": [1.0, 3.0]}, "only_special": 1.5}
    flawed = {"frequency_prior": {"avg": 8.0}, "shuffled_speech": {"avg": 5.5}}
    words = {"precision": 30.0, "recall": 20.0, "f1": 24.0, "whole_f1": 12.0}
    times = {"precision": 20.0, "recall": 16.0, "f1": 18.0, "over_segmentation": -20.0, "r_value": 27.0}
    return keyword_scores(rate, seed) | {
        "shuffled_speech": dict.fromkeys(["clean", "reference", "content_top1"], {"kw1": 3.0, "avg": 3.0}),
        "sweep": {
            "all": {k: {**with_ci(rate + int(k)), **beside} for k in ("1", "5", "20")},
            "content": {"10": {**with_ci(rate), **beside}},
        },
        "reference_sweep": {"all": {"5": {**with_ci(rate + 9), **beside}}, "content": {"1": with_ci(rate - 9)}},
        "flaws": {
            "clean": {**with_ci(rate), **beside, "only_special": 0.0},
            **{name: {**flaw, **flawed} for name in (
                "special_tokens", "quantised", "misaligned", "special_tokens+quantised",
                "special_tokens+quantised+misaligned",
            )},
        },
        "words": {"content": {**words, "ci95": {"f1": [23.0, 25.0]},
                              "frequency_prior": words | {"f1": 11.0}, "shuffled_speech": words | {"f1": 5.0}}},
        "gold_cosine": {"content": {"avg": 0.381, "frequency_prior": {"avg": 0.3}, "shuffled_speech": {"avg": 0.2}}},
        "distinct": {"content": {"duplicates": 17.0, "frequency_prior": {"duplicates": 4.0}}},
        "overlap": {"named": 32.0, "overlap": 85.0, "ci95": {"overlap": [83.0, 87.0]},
                    "random_position": {"overlap": 29.0}, "frequency_prior": {"named": 11.0, "overlap": 39.0},
                    "shuffled_speech": {"named": 6.0, "overlap": 30.0}},
        "segmentation": {**times, "uniform": {**times, "f1": 14.6}, "shuffled_speech": {**times, "f1": 14.8}},
    }  # fmt: skip


@pytest.fixture
def make_full(make):
    def make_run(name, rate, seed):
        run = make(name, 40, seed, rate=rate)
        write(run.directory / "scores" / "keywords.json", full_keyword_scores(rate, seed))
        return load_run(run.directory)

    return make_run


def test_rows_of_the_keyword_suite(make_full, results):
    update_results(results, [make_full("tiny_cascaded", 60.0, 0)])
    own, prior, shuffled = rows_of(results, "keywords", "Keyword hit rate by number of neighbours")
    assert list(own) == ["model", "head", "seed", "K=1", "K=5", "K=20", "content K=10"]
    assert (own["K=5"], own["content K=10"]) == ("65.0 [64.0, 66.0]", "60.0 [59.0, 61.0]")
    assert (prior["head"], prior["K=20"]) == ("*frequency prior* (cascaded)", "9.0")
    assert (shuffled["head"], shuffled["seed"], shuffled["K=1"]) == ("*shuffled speech* (cascaded)", "0", "4.0")

    own, prior, _ = rows_of(results, "keywords", "Keyword hit rate by number of neighbours, reference")
    assert (own["K=5"], own["content K=1"]) == ("69.0 [68.0, 70.0]", "51.0 [50.0, 52.0]")
    assert prior["K=5"] == "9.0" and "content K=1" not in prior
    title = "What the published code's flaws change, in points of the clean hit rate"
    own, prior, shuffled = rows_of(results, "keywords", title)
    assert own["clean"] == "60.0 [59.0, 61.0]"
    assert own["special tokens"] == own["all three"] == "+2.0 [+1.0, +3.0]"
    assert own["only special"] == "1.5"
    assert (prior["clean"], prior["quantised"]) == ("9.0", "-1.0")
    assert (shuffled["clean"], shuffled["misaligned"]) == ("4.0", "+1.5")

    rows = {row["head"]: row for row in rows_of(results, "keywords", "Keywords as words, and where they are said")}
    assert rows["cascaded"] == {
        "model": "tiny", "head": "cascaded", "seed": "0", "precision": "30.0", "recall": "20.0",
        "F1": "24.0 [23.0, 25.0]", "whole F1": "12.0", "cosine × 100": "38.1", "duplicates": "17.0", "named": "32.0",
        "overlap": "85.0 [83.0, 87.0]", "boundary F1": "18.0",
    }  # fmt: skip
    assert rows["*shuffled speech* (cascaded)"]["cosine × 100"] == "20.0"
    assert rows["*random position* (cascaded)"]["overlap"] == "29.0"
    assert rows["*evenly spaced* (cascaded)"]["boundary F1"] == "14.6"
    assert "duplicates" not in rows["*shuffled speech* (cascaded)"]
    clean = {row["head"]: row for row in rows_of(results, "keywords", "Keyword hit rate, clean")}
    assert clean["*shuffled speech* (cascaded)"]["kw1"] == "3.0"


def test_the_keyword_suite_of_several_seeds_has_means_and_is_merged(make_full, results):
    update_results(results, [make_full("tiny_cascaded", 60.0, 0), make_full("tiny_cascaded_seed1", 70.0, 1)])
    before = results.read_text()
    rows = rows_of(results, "keywords", "Keyword hit rate by number of neighbours")
    assert [row["K=1"] for row in rows if row["head"] == "cascaded"][-1] == "66.0 ± 7.1"
    assert [row.get("seed") for row in rows if row["head"].startswith("*shuffled")] == ["0", "1", "mean of 2"]
    update_results(results, [make_full("tiny_cascaded_seed1", 70.0, 1)])
    assert results.read_text() == before


def test_scores_of_words_of_older_versions_have_no_whole_f1(make_full, results):
    run = make_full("tiny_cascaded", 60.0, 0)
    scores = json.loads((run.directory / "scores" / "keywords.json").read_text())
    del scores["words"]["content"]["whole_f1"], scores["reference_sweep"]
    write(run.directory / "scores" / "keywords.json", scores)
    update_results(results, [load_run(run.directory)])
    assert all(
        "whole F1" not in row for row in rows_of(results, "keywords", "Keywords as words, and where they are said")
    )


def test_older_keyword_scores_have_the_rows_they_had(make, results):
    update_results(results, [make("tiny_cascaded", 40, rate=30.0)])
    text = results.read_text()
    assert "Keyword hit rate, clean" in text
    assert "number of neighbours\n" not in text.split("### Keyword")[-1]
    assert "shuffled speech* (cascaded)" not in text
