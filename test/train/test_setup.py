"""Building the parts of a training run, and the errors for missing or damaged inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures import (
    JOINT,
    STATES,
    WIDTH,
    captions,
    save_clip,
    save_hubert,
    settings,
    stored_split,
    vocabulary_of,
    with_paths,
)

from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.data.embeddings import save_embeddings
from speechclip.model.encoders.clip import load_clip
from speechclip.model.network import Dimensions
from speechclip.train.setup import training_model


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    stored_split(tmp_path, "train", images=2, each=2, seed=0)
    return tmp_path / "dump" / "train"


def test_training_loads_only_the_parts_of_its_step(dump: Path, tmp_path: Path) -> None:
    model = training_model(settings(), dump, "")
    assert model.dimensions == Dimensions(WIDTH, STATES, JOINT)
    assert model.speech_encoder is None
    assert model.clip is None
    config = with_paths(settings(data__feats="online"), hubert=save_hubert(tmp_path / "hubert"))
    assert training_model(config, dump, "").speech_encoder is not None
    config = settings(**{"model__speech_encoder__layers": [0, 2]})
    assert training_model(config, dump, "").dimensions.states == 2
    clip = save_clip(tmp_path / "clip")
    vocabulary_of(captions(5), load_clip(ClipConfig(str(clip)))).save(tmp_path / "v.tsv")
    config = with_paths(settings(model__head__name="cascaded"), clip=clip)
    model = training_model(config, dump, str(tmp_path / "v.tsv"))
    assert model.clip is not None
    assert model.speech_encoder is None
    with pytest.raises(UserError, match="nothing.tsv: is missing$"):
        training_model(config, dump, str(tmp_path / "nothing.tsv"))
    save_embeddings(dump / "image_embeddings.npz", ["a"], np.eye(1, JOINT + 1))
    with pytest.raises(UserError, match=f"image_embeddings.npz: {JOINT + 1} dimensions, but .*clip has {JOINT}"):
        training_model(config, dump, str(tmp_path / "v.tsv"))


def test_missing_or_damaged_embeddings_and_features_are_one_line(dump: Path) -> None:
    (dump / "image_embeddings.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="image_embeddings.npz: not a readable .npz file"):
        training_model(settings(), dump, "")
    (dump / "image_embeddings.npz").unlink()
    with pytest.raises(UserError, match="image_embeddings.npz: is missing"):
        training_model(settings(), dump, "")
    with pytest.raises(UserError, match="feats.scp"):
        training_model(settings(), dump / "nowhere", "")
