"""Regions of torchvision's Faster R-CNN (Ren et al., NeurIPS 2015, arXiv 1506.01497)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError, first_line
from speechclip.data.regions import Regions
from speechclip.model.encoders.base import weights_fingerprint

COUNT = 36  # regions of an image, as in FaST-VGS
_OVERLAP = 0.7  # of two regions of which the weaker one is dropped
_WEIGHTS = "DEFAULT"  # of torchvision, downloaded on first use


class Detector:
    """torchvision's Faster R-CNN with the features of its second stage.

    The proposals of an image are scored by their best class other than the background. The best ones that do not
    overlap are its regions. Overlapping ones fill up an image with too few. A feature is the input of the box
    predictor.

    Args:
        model: a torchvision ``FasterRCNN``.
        name: name of the weights, for the description.
        count: regions of each image.
    """

    def __init__(self, model: Any, name: str, count: int = COUNT) -> None:
        self.model, self.count = model.eval().requires_grad_(False), count
        self.description = {"kind": "frcnn", "name": name, "weights": weights_fingerprint(model)}

    @torch.no_grad()
    def find(self, image: Image.Image) -> Regions:
        """Return the regions of an RGB image, the best first."""
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1).to(device)
        batch, _ = self.model.transform([pixels])
        maps = self.model.backbone(batch.tensors)
        proposals, _ = self.model.rpn(batch, maps)
        heads = self.model.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, proposals, batch.image_sizes))
        logits, _ = heads.box_predictor(features)
        scores = logits.softmax(dim=-1)[:, 1:].max(dim=-1).values
        height, width = batch.image_sizes[0]
        scale = torch.tensor([width, height, width, height], device=device)
        boxes = (proposals[0] / scale).clamp(0, 1)
        chosen = choose(boxes, scores, self.count)
        return Regions(features[chosen].float().cpu(), boxes[chosen].float().cpu())


def choose(boxes: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return the positions of ``count`` boxes [N, 4], the best first.

    Boxes that overlap with a better one come last. If there are fewer boxes than ``count``, they repeat.
    """
    order = scores.argsort(descending=True, stable=True)
    kept: list[int] = []
    dropped: list[int] = []
    for at in order.tolist():
        if len(kept) == count:
            break
        overlaps = kept and bool((_overlap(boxes[at], boxes[kept]) > _OVERLAP).any())
        (dropped if overlaps else kept).append(at)
    listed = (kept + dropped)[:count]
    return torch.tensor([listed[at % len(listed)] for at in range(count)])


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of a box [4] with others [N, 4]."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(dim=1)
    return shared / (area - shared).clamp(min=1e-12)


def load_detector(weights: str = "", count: int = COUNT) -> Detector:
    """Load torchvision's Faster R-CNN with a ResNet-50 and a feature pyramid.

    Args:
        weights: a state dict that torch saved; empty for the weights that torchvision downloads.
        count: regions of each image.

    Raises:
        UserError: torchvision is built for another torch, or the weights cannot be read.
    """
    prepare()
    import torchvision

    if not torchvision.extension._has_ops():
        raise UserError(
            "torchvision: its native operators do not fit this torch. Install the build of torchvision for your torch."
        )
    detection = torchvision.models.detection
    try:
        if not weights:
            model = detection.fasterrcnn_resnet50_fpn_v2(weights=_WEIGHTS)
        else:
            model = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
            model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    except Exception as error:  # the errors of downloads and of damaged files have no common class
        raise UserError(f"{weights or 'torchvision'}: Faster R-CNN cannot be loaded: {first_line(error)}") from error
    return Detector(model, "fasterrcnn_resnet50_fpn_v2", count)
