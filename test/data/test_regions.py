"""The store of image regions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.regions import Regions, RegionStore, RegionWriter, grid_boxes


def some_regions(seed: int, count: int = 4) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    return Regions(torch.randn(count, 6, generator=generator), torch.rand(count, 4, generator=generator))


def test_store_returns_features_and_boxes_by_image(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, {"kind": "butd"}, dtype="float32") as writer:
        for number in range(3):
            writer.add_image(f"img{number}", some_regions(number))
    store = RegionStore(tmp_path)
    assert (store.width, store.count, store.ids) == (6, 4, ("img0", "img1", "img2"))
    assert store.source == {"kind": "butd"}
    torch.testing.assert_close(store.read("img1"), some_regions(1))
    batch = store.batch(["img2", "img0", "img2"])
    torch.testing.assert_close(batch.boxes, torch.stack([some_regions(n).boxes for n in (2, 0, 2)]))
    torch.testing.assert_close(batch.features[1], some_regions(0).features)
    with pytest.raises(MissingFileError, match="no regions of image 'a' and 1 more"):
        store.check_images(["img0", "a", "b"])


def test_writer_refuses_boxes_in_pixels(tmp_path: Path) -> None:
    wrong = Regions(torch.ones(2, 3), torch.tensor([[0.0, 0.0, 20.0, 30.0], [0.1, 0.1, 0.2, 0.2]]))
    writer = RegionWriter(tmp_path, {"kind": "butd"})
    with pytest.raises(UserError, match=r"image 'a' has a box outside"):
        writer.add_image("a", wrong)


def test_store_refuses_different_numbers_of_regions(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, {"kind": "frcnn"}) as writer:
        writer.add_image("a", some_regions(1, 4))
        writer.add_image("b", some_regions(1, 5))
    with pytest.raises(UserError, match="images with 4 to 5 regions"):
        RegionStore(tmp_path)


def test_grid_boxes_cover_the_picture_row_by_row() -> None:
    boxes = grid_boxes(2, 4)
    assert boxes[0].tolist() == [0, 0, 0.25, 0.5]
    assert boxes[5].tolist() == [0.25, 0.5, 0.5, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert areas.sum().item() == pytest.approx(1)
