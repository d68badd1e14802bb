"""Transcripts of recognisers on the page of a run, and the WER column of the retrieval table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scored_runs import scored_data, scored_run

from speechclip.bin.results import main
from speechclip.eval.transcripts import write_transcripts
from speechclip.report.page.eval_split import load_eval_split
from speechclip.report.page.page import write_page
from speechclip.report.runs import load_run


def test_page_shows_transcripts_next_to_the_caption(tmp_path: Path) -> None:
    recipe = scored_data(tmp_path, images=4, each=2)
    run = load_run(scored_run(recipe, "tiny_parallel", noise=0.5))
    data, dump = recipe / "data" / "test", recipe / "dump" / "test"
    ids = [utterance.id for utterance in load_eval_split(run, data, dump).utterances]
    path = tmp_path / "asr" / "transcripts" / "test.jsonl"
    write_transcripts(path, {name: f"heard {name}" for name in ids}, {"name": "ctc", "kind": "ctc"})
    split = load_eval_split(run, data, dump, [path])
    page = write_page(run, split, "mini", tmp_path / "page.html").read_text(encoding="utf-8")
    assert split.transcripts == {"ctc": [f"heard {name}" for name in ids]}
    for name in ids:
        assert f'"heard":[["ctc","heard {name}"]]' in page


def test_retrieval_table_has_a_wer_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = scored_data(tmp_path, images=4, each=2)
    runs = [scored_run(recipe, name, noise=0.5) for name in ("tiny_parallel", "tiny_asr_ctc")]
    path = runs[1] / "scores" / "retrieval.json"
    content = json.loads(path.read_text())
    content["recognition"] = {"wer": 12.5}
    content["provenance"] |= {"head": "asr_ctc", "tag": ""}
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    main(["--exp", *map(str, runs), "--out", "exp/RESULTS.md", "--recipe", "mini"])
    table = (tmp_path / "exp" / "RESULTS.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| tiny") and "asr_ctc" in line]
    assert any(line.rstrip(" |").endswith("12.50") for line in lines)
    assert "WER: word error rate" in table
