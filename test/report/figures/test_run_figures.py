"""Figures of a run: they show its numbers, a missing file gives no figure, and equal data give equal files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from speechclip.common.errors import UserError
from speechclip.eval.retrieval import retrieval_report
from speechclip.report.figures.run_figures import (
    best_layer_weights,
    best_step,
    keyword_bars,
    layer_weight_bars,
    read_metrics,
    retrieval_bars,
    training_curves,
    write_figures,
)


def dev(step, mean):
    return {"step": step, "dev": {"speech->image": {"R@1": 1.0, "R@10": mean}, "mean_R@10": mean}}


METRICS = [
    {"step": 1, "loss": 5.0, "lr": 1e-5, "temperature": 0.07, "layer_weights": [0.5, 0.5]},
    {"step": 2, "loss": 4.0, "lr": 2e-5, "temperature": 0.07, "layer_weights": [0.4, 0.6]},
    dev(2, 30.0),
    {"step": 3, "loss": 3.0, "lr": 1e-5, "temperature": 0.07, "layer_weights": [0.3, 0.7]},
    dev(3, 20.0),
]
RATES = {"kw1": 20.0, "kw2": 40.0, "avg": 30.0}
PRIOR = {"kw1": 10.0, "kw2": 10.0, "avg": 10.0}
SCORES = ("clean", "reference", "content_top1")
KEYWORDS = {**dict.fromkeys(SCORES, RATES), "frequency_prior": dict.fromkeys(SCORES, PRIOR)}


def retrieval():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((3, 20, 4))
    return retrieval_report(vectors[0], np.arange(20), vectors[1], vectors[2], n_bootstrap=50)


def write_lines(path, lines):
    path.write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def test_write_figures_draws_all_figures(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", METRICS)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "retrieval.json").write_text(json.dumps(retrieval()))
    (tmp_path / "scores" / "keywords.json").write_text(json.dumps(KEYWORDS))
    written = write_figures(tmp_path)
    names = ["training", "layer_weights", "retrieval", "keywords"]
    assert written == [tmp_path / "figures" / f"{name}.{suffix}" for name in names for suffix in ("svg", "png")]
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    for path in written:
        start = path.read_bytes()[:400]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in path.read_bytes()
        assert path.stat().st_size > 5000
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_figures(tmp_path)] == first


def test_write_figures_without_scores(tmp_path):
    assert write_figures(tmp_path) == []
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    assert [path.name for path in write_figures(tmp_path)] == ["training.svg", "training.png"]


def test_write_figures_names_an_incomplete_file(tmp_path):
    (tmp_path / "scores").mkdir()
    path = tmp_path / "scores" / "keywords.json"
    path.write_text(json.dumps({"clean": RATES}))
    with pytest.raises(UserError, match="keywords.json: cannot be drawn: "):
        write_figures(tmp_path)
    assert not (tmp_path / "figures").exists()
    path.unlink()
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(UserError, match="metrics.jsonl: cannot be drawn: "):
        write_figures(tmp_path)


def test_read_metrics_of_a_resumed_training(tmp_path):
    lines = [METRICS[0], METRICS[1], {"step": 3, "loss": 9.0}, '{"step": 4, "lo', dev(2, 30.0), METRICS[3]]
    metrics = read_metrics(write_lines(tmp_path / "m.jsonl", lines))
    # the dev line that follows the cut line is lost with it; of step 3 the last line counts
    assert [(m["step"], m.get("loss")) for m in metrics] == [(1, 5.0), (2, 4.0), (3, 3.0)]
    with pytest.raises(UserError, match="no line with a step"):
        read_metrics(write_lines(tmp_path / "m.jsonl", ["half a li\n", "[1]\n", '{"loss": 1}\n']))


def test_best_step_and_its_layer_weights():
    assert best_step(METRICS) == 2
    assert best_layer_weights(METRICS) == (2.0, [0.4, 0.6])
    no_dev = [record for record in METRICS if "dev" not in record]
    assert best_step(no_dev) is None
    assert best_layer_weights(no_dev) == (3.0, [0.3, 0.7])
    assert best_layer_weights([dev(1, 3.0)]) is None
    assert best_layer_weights([dev(1, 3.0), METRICS[3]]) == (3.0, [0.3, 0.7])


def test_keyword_bars_without_controls_of_rare_keywords(tmp_path):
    scores = {name: dict(rates) for name, rates in KEYWORDS.items() if name in SCORES}
    scores["clean"]["kw3"] = 50.0  # a rare keyword, which the controls lack
    scores["frequency_prior"] = dict.fromkeys(SCORES, PRIOR)
    scores["shuffled_speech"] = dict.fromkeys(SCORES, {"kw1": 5.0, "avg": 5.0})
    scores["ci95"] = dict.fromkeys(SCORES, {"kw1": [10.0, 30.0], "avg": [20.0, 40.0]})
    axes = keyword_bars(scores).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == [20.0, 40.0, 30.0, 50.0]
    lines = {line.get_label(): len(line.get_segments()) for line in axes.collections}
    assert (lines["frequency prior"], lines["shuffled speech"]) == (3, 2)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "keywords.json").write_text(json.dumps(scores))
    assert [path.name for path in write_figures(tmp_path)] == ["keywords.svg", "keywords.png"]


def test_sweep_curves_with_few_neighbours(tmp_path):
    (tmp_path / "scores").mkdir()
    path = tmp_path / "scores" / "keywords.json"
    row = {"avg": 20.0, "ci95": {"avg": [10.0, 30.0]}, "frequency_prior": {"avg": 5.0}}
    for sweep, drawn in (({"all": {"30": row}, "content": {}}, 4), ({"all": {}, "content": {}}, 2)):
        path.write_text(json.dumps({**KEYWORDS, "sweep": sweep}))
        assert len(write_figures(tmp_path)) == drawn


def test_training_curves_show_the_values():
    figure = training_curves(METRICS)
    assert [axes.get_title() for axes in figure.axes] == [
        "Training loss",
        "Retrieval on dev",
        "Learning rate",
        "Temperature",
    ]
    loss = figure.axes[0].lines[0]
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([1, 2, 3], [5, 4, 3])
    assert {line.get_label() for line in figure.axes[1].lines} >= {"mean R@10", "speech→image R@10", "best step: 2"}


def test_training_curves_smooth_a_long_loss():
    figure = training_curves([{"step": s, "loss": float(s % 2)} for s in range(200)])
    raw, smooth = figure.axes[0].lines
    assert smooth.get_label() == "loss, mean of 4"
    assert list(smooth.get_ydata()[4:]) == pytest.approx([0.5] * 196)
    assert list(smooth.get_ydata()[:3]) == pytest.approx([0.0, 0.5, 1 / 3])
    assert len(raw.get_ydata()) == 200


def test_bars_have_the_height_of_the_scores():
    scores = retrieval()
    axes = retrieval_bars(scores).axes[0]
    heights = [bar.get_height() for container in axes.containers for bar in container if hasattr(bar, "get_height")]
    assert heights[:7] == pytest.approx([scores[name]["R@1"] for name in scores["random"]])
    assert axes.get_xticklabels()[4].get_text() == "speech→text\n(any caption)"
    without = {k: {n: v for n, v in row.items() if n != "ci95"} if "->" in k else row for k, row in scores.items()}
    assert len(retrieval_bars(without).axes[0].containers) == len(axes.containers)
    axes = keyword_bars(KEYWORDS).axes[0]
    assert [bar.get_height() for bar in axes.containers[2]] == [20.0, 40.0, 30.0]
    assert [label.get_text() for label in axes.get_legend().get_texts()].count("frequency prior") == 1
    axes = layer_weight_bars(METRICS).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == [0.4, 0.6]
