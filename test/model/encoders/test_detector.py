"""Regions of torchvision's Faster R-CNN. The weights are random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.model.encoders.detector import Detector, choose, load_detector

prepare()  # before torchvision is imported
torchvision = pytest.importorskip("torchvision")


def test_overlapping_boxes_come_last() -> None:
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.49], [0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1]])
    scores = torch.tensor([0.8, 0.9, 0.1, 0.3])
    assert choose(boxes, scores, 2).tolist() == [1, 3]
    assert choose(boxes, scores, 4).tolist() == [1, 3, 2, 0]
    assert choose(boxes, scores, 6).tolist() == [1, 3, 2, 0, 1, 3]


def test_boxes_that_touch_a_little_are_kept() -> None:
    boxes = torch.tensor([[0, 0, 1.0, 1.0], [0, 0, 1.0, 0.6]])  # they share 60 %
    assert choose(boxes, torch.tensor([0.5, 0.6]), 2).tolist() == [1, 0]


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the positions of the boxes that do not overlap with a better one, by one loop over the boxes."""
    kept: list[int] = []
    for at in scores.argsort(descending=True).tolist():
        if not kept or float(torchvision.ops.box_iou(boxes[at : at + 1], boxes[kept]).max()) <= limit:
            kept.append(at)
    return torch.tensor(kept, dtype=torch.int64)


def has_operators() -> bool:
    return bool(torchvision.extension._has_ops())


@pytest.mark.slow
def test_regions_of_a_small_image(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_operators():  # torchvision's other operators have plain versions of their own
        monkeypatch.setattr(torchvision.ops.boxes, "nms", plain_nms)
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    detector = Detector(model, "random")
    # small pictures and few proposals: the published ones cost many seconds
    detector.model.transform.min_size, detector.model.transform.max_size = (96,), 160
    detector.model.rpn._pre_nms_top_n = detector.model.rpn._post_nms_top_n = {"training": 60, "testing": 60}
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with torch.compiler.set_stance("force_eager"):  # compiling torchvision's plain version costs a minute
        regions = detector.find(Image.fromarray(pixels))
    assert regions.features.shape == (36, 1024) and regions.boxes.shape == (36, 4)
    assert regions.boxes.min() >= 0 and regions.boxes.max() <= 1
    assert bool((regions.boxes[:, :2] <= regions.boxes[:, 2:]).all())
    assert bool(regions.features.isfinite().all())
    # the features are those of the box head at the boxes
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        batch, _ = detector.model.transform([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
        height, width = batch.image_sizes[0]
        assert (height, width) == (96, 128)
        maps = detector.model.backbone(batch.tensors)
        places = [regions.boxes * torch.tensor([width, height, width, height])]
        heads = detector.model.roi_heads
        expected = heads.box_head(heads.box_roi_pool(maps, places, batch.image_sizes))
    torch.testing.assert_close(regions.features, expected, rtol=1e-3, atol=1e-4)
    assert detector.description["kind"] == "frcnn" and detector.description["weights"]


@pytest.mark.skipif(not has_operators(), reason="torchvision is built for another torch")
def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"weights\.pth: Faster R-CNN cannot be loaded: ") as caught:
        load_detector(str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(has_operators(), reason="torchvision fits this torch")
def test_torchvision_of_another_torch_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^torchvision: its native operators do not fit this torch\. Install "
    ) as caught:
        load_detector()
    assert "\n" not in str(caught.value)
