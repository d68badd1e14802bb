"""tools/measure/measure_scale.py: generated corpora are valid, and the real training command runs on them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "measure"))

import measure_scale  # noqa: E402
import scale_corpus  # noqa: E402

from speechclip.data.dataset import Split, StoreSource  # noqa: E402
from speechclip.data.kaldi import find_problems  # noqa: E402


def test_scale_corpus_is_valid(tmp_path: Path) -> None:
    scale_corpus.write_corpus(tmp_path, "train", 4321, 8)
    assert find_problems(tmp_path / "data/train") == []
    split = Split.load(tmp_path / "data/train", tmp_path / "dump/train")
    source = StoreSource(tmp_path / "dump/train", split.ids)
    assert len(split.ids) == 4321 and split.images.shape == (865, 8)
    assert len(np.unique(split.utterance_image)) == 865
    states = source.batch([0, 4320]).states
    assert states is not None and states.shape[:2] == (2, 2) and states.isfinite().all()


@pytest.mark.slow
def test_torchrun_trains_with_the_real_command(tmp_path: Path) -> None:
    scale_corpus.write_corpus(tmp_path, "train", 2000, 8)
    scale_corpus.write_corpus(tmp_path, "dev", 300, 8)
    run = measure_scale.measure(tmp_path, steps=3, processes=2)
    assert (tmp_path / "exp/best/model.safetensors").is_file()
    assert 0 < run.first <= run.total and 1e7 < run.private < 1e10
