"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import save_clip, stored_split

from speechclip.config import ClipConfig
from speechclip.model.encoders.clip import OpenClip, load_clip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 utterances of 8 images to train on, 8 of 4 for dev, with random features that carry the image."""
    folder = tmp_path_factory.mktemp("corpus")
    stored_split(folder, "train", images=8, each=3, seed=0)
    stored_split(folder, "dev", images=4, each=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    """A tiny random CLIP."""
    return load_clip(ClipConfig(str(save_clip(tmp_path_factory.mktemp("clip") / "clip"))))
