"""Patch tokens of CLIP's image towers, and the store of regions that stage 2 makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures import make_data, save_clip
from torch import nn

from speechclip.common.errors import Stopped, UserError
from speechclip.config import ClipConfig
from speechclip.data.regions import FOLDER, RegionStore
from speechclip.features.regions import store_patches
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.patches import patch_tokens

MINI = Path(__file__).resolve().parents[3] / "egs" / "mini" / "models" / "clip"


def test_patches_of_a_transformer_pool_to_its_embedding(tmp_path: Path) -> None:
    clip = load_clip(ClipConfig(str(save_clip(tmp_path / "clip"))))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens, rows, columns = clip.encode_patches(pixels)
    assert tokens.shape == (3, 4, 32)
    assert (rows, columns) == (2, 2)
    visual = clip.model.visual
    with torch.no_grad():
        whole = visual.ln_post(visual.transformer(visual._embeds(pixels)))
    assert torch.equal(tokens, whole[:, 1:])
    expected = nn.functional.normalize(whole[:, 0] @ visual.proj, dim=-1)
    assert torch.allclose(clip.encode_pixels(pixels), expected, atol=1e-6)


def test_patches_of_a_residual_network_join_its_last_maps() -> None:
    clip = load_clip(ClipConfig(str(MINI)))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens, rows, columns = clip.encode_patches(pixels)
    assert (rows, columns) == (4, 4)  # the last map has 2 x 2 cells
    assert tokens.shape == (2, 16, 256 + 512)
    visual = clip.model.visual
    with torch.no_grad():
        third = visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels))))
        fourth = visual.layer4(third)
    for row in range(4):
        for column in range(4):
            expected = torch.cat([third[:, :, row, column], fourth[:, :, row // 2, column // 2]], dim=1)
            assert torch.allclose(tokens[:, 4 * row + column], expected, atol=1e-6)


def test_a_tower_without_patches_is_one_line() -> None:
    with pytest.raises(UserError, match="^x: its image tower .Identity. has no patch tokens. Use another model.$"):
        patch_tokens(nn.Identity(), torch.zeros(1, 3, 8, 8), "x")


def test_patches_are_stored_with_cells_and_resume(tmp_path: Path) -> None:
    clip = load_clip(ClipConfig(str(save_clip(tmp_path / "clip"))))
    data = make_data(tmp_path / "data", images=70, each=1)
    with pytest.raises(Stopped, match="stopped after 1 of 70 images"):
        store_patches(data, tmp_path / "dump", clip, stop=lambda: True)
    assert store_patches(data, tmp_path / "dump", clip) == 70
    store = RegionStore(tmp_path / "dump" / FOLDER)
    assert (store.ids, store.count, store.width) == (tuple(sorted(data.images)), 4, 32)
    assert store.source["weights"] == clip.description["weights"]
    found = store.read("i65")
    assert found.boxes.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    other = load_clip(ClipConfig(str(save_clip(tmp_path / "other", seed=8))))
    store_patches(data, tmp_path / "dump", other)
    assert (RegionStore(tmp_path / "dump" / FOLDER).read("i65").features - found.features).abs().max() > 0.1
