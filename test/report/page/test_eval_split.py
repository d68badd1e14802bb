"""The evaluated split of a run, as the page reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scored_runs import scored_data, scored_run

from speechclip.common.errors import UserError
from speechclip.data.embeddings import save_embeddings
from speechclip.data.kaldi import DataDir
from speechclip.eval.score_files import SPEECH, write_image_embeddings
from speechclip.report.page.eval_split import load_eval_split
from speechclip.report.page.page import write_page
from speechclip.report.runs import load_run


def test_a_head_with_its_own_image_tower_is_shown(tmp_path: Path) -> None:
    recipe = scored_data(tmp_path, images=4, each=2)
    run = load_run(scored_run(recipe, "tiny_fast_vgs", noise=0.5))
    data, dump = recipe / "data" / "test", recipe / "dump" / "test"
    ids = [utterance.id for utterance in DataDir.load(data).utterances]
    image_ids = load_eval_split(run, data, dump).image_ids  # those of CLIP
    random = np.random.default_rng(0)
    speech, images = (random.standard_normal((count, 7)).astype("f4") for count in (8, 4))
    save_embeddings(run.directory / "scores" / SPEECH, ids, speech)
    with pytest.raises(UserError, match="was scored with another CLIP"):
        load_eval_split(run, data, dump)
    write_image_embeddings(run.directory / "scores", image_ids, images)
    split = load_eval_split(run, data, dump)
    for found, given in ((split.images, images), (split.speech, speech)):  # the page shows cosines
        np.testing.assert_allclose(found, given / np.linalg.norm(given, axis=1, keepdims=True), rtol=1e-5)
    assert write_page(run, split, "mini", tmp_path / "page.html").stat().st_size > 1000
