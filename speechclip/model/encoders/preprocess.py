"""CLIP's image preprocessing, computed with PIL alone.

It follows open_clip's evaluation transform and transformers' ``CLIPImageProcessor``. Both resize, crop or pad, and
normalise, but they round differently.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.common.files import lines_fingerprint
from speechclip.convert.clip import PREPROCESS

if TYPE_CHECKING:
    from PIL.Image import Image

#: If a resized image would have more pixels (200 MB), it is resized and cropped in one step.
MAX_PIXELS = 2**26


@dataclass(frozen=True)
class ImagePreprocess:
    """Resize an RGB image, crop or pad it around its centre, and normalise it.

    Attributes:
        size: height and width of the result, in pixels.
        mean: mean of each channel.
        std: standard deviation of each channel.
        resample: number of PIL's filter.
        resize: how the image is resized to ``resize_to``. "shortest" fits the short side and truncates the long side.
            "fill" and "fit" keep the ratio: the result covers, or is inside, ``resize_to``. "squash" ignores the ratio.
            "none" does not resize.
        resize_to: height and width that the image is resized to; None for ``size``.
        fill: grey value (0 to 255) of the padding.
        floor: round the offset of the crop down (transformers) instead of to the nearest even number (open_clip).
        scale: factor of the pixel values before normalisation.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    resize: str = "shortest"
    resize_to: tuple[int, int] | None = None
    fill: int = 0
    floor: bool = False
    scale: float = 1 / 255

    def __call__(self, image: Image) -> Tensor:
        """Return an RGB image as [3, height, width] float."""
        image = self._crop(self._resize(image))
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))  # [H, W, 3]
        pixels = pixels / 255 if self.scale == 1 / 255 else pixels * self.scale
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the settings."""
        return lines_fingerprint([json.dumps(dataclasses.asdict(self))])

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image after it was resized."""
        rows, columns = self.resize_to or self.size
        if self.resize == "squash":
            return columns, rows
        if self.resize == "none":
            return width, height
        if self.resize == "shortest":
            short = min(width, height)
            return (width, height) if short == rows else (int(rows * width / short), int(rows * height / short))
        choose = min if self.resize == "fill" else max
        ratio = choose(height / rows, width / columns)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _resize(self, image: Image) -> Image:
        width, height = target = self.resized(image.width, image.height)
        if target == image.size:
            return image
        if width * height <= MAX_PIXELS:
            return image.resize(target, resample=self.resample)
        # A long strip: compute only the part that the crop keeps. PIL rounds differently here, by a few grey levels.
        rows, columns = self.size
        left, top = self._offset(width, columns), self._offset(height, rows)
        kept = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
        ratio = image.width / width, image.height / height
        box = kept[0] * ratio[0], kept[1] * ratio[1], kept[2] * ratio[0], kept[3] * ratio[1]
        return image.resize((kept[2] - kept[0], kept[3] - kept[1]), resample=self.resample, box=box)

    def _crop(self, image: Image) -> Image:
        from PIL import Image as pillow

        rows, columns = self.size
        left, top = self._offset(image.width, columns), self._offset(image.height, rows)
        if image.width >= columns and image.height >= rows:
            return image.crop((left, top, left + columns, top + rows))
        padded = pillow.new("RGB", (columns, rows), (self.fill,) * 3)
        padded.paste(image, (-left, -top))
        return padded

    def _offset(self, length: int, wanted: int) -> int:
        """Return the first pixel of the crop; negative if the image is padded."""
        if length >= wanted:
            return (length - wanted) // 2 if self.floor else round((length - wanted) / 2)
        # transformers pads more before than after the image, torchvision the other way round
        return -((wanted - length + 1) // 2) if self.floor else -((wanted - length) // 2)


def preprocess_of(settings: Mapping[str, Any], source: str) -> ImagePreprocess:
    """Return the evaluation preprocessing of an open_clip model.

    Args:
        settings: open_clip's ``preprocess_cfg`` of the loaded model, with its size.
        source: the model's path, for errors.

    Raises:
        UserError: a value that open_clip does not support, either.
    """
    from PIL.Image import Resampling

    def value(name: str, known: tuple[str, ...]) -> str:
        found = settings.get(name) or known[0]
        if found not in known:
            raise UserError(f"{source}: preprocess_cfg.{name} is {found!r}. Supported are {', '.join(known)}.")
        return str(found)

    value("mode", ("RGB",))
    resize_mode = value("resize_mode", ("shortest", "longest", "squash"))
    interpolation = value("interpolation", ("bicubic", "bilinear", "random"))  # "random" is for training
    resample = Resampling.BILINEAR if interpolation == "bilinear" else Resampling.BICUBIC
    size = _pair(settings["size"], f"{source}: preprocess_cfg.size")
    resize = {"longest": "fit", "squash": "squash"}.get(resize_mode, "shortest")
    if resize == "shortest" and size[0] != size[1]:
        resize, resample = "fill", Resampling.BICUBIC  # open_clip ignores the interpolation here
    mean = _channels(settings.get("mean") or PREPROCESS["mean"], f"{source}: preprocess_cfg.mean")
    std = _channels(settings.get("std") or PREPROCESS["std"], f"{source}: preprocess_cfg.std")
    fill = settings.get("fill_color") or 0
    if not isinstance(fill, int) or not 0 <= fill <= 255:
        raise UserError(f"{source}: preprocess_cfg.fill_color is {fill!r}. It must be a grey value, 0 to 255.")
    # open_clip pads with the colour only if the long side is fitted
    return ImagePreprocess(size, mean, std, resample, resize, fill=fill if resize_mode == "longest" else 0)


def preprocess_of_transformers(processor: Any, size: tuple[int, int], source: str) -> ImagePreprocess:
    """Return the preprocessing of transformers' ``CLIPImageProcessor`` or ``SiglipImageProcessor``.

    Args:
        processor: the image processor.
        size: height and width of the vision tower's input, in pixels.
        source: the processor's file, for errors.

    Raises:
        UserError: the processor's images do not have the size of the tower's input.
    """
    resize, target = "none", None
    if processor.do_resize:
        if "shortest_edge" in processor.size:
            resize, target = "shortest", (int(processor.size["shortest_edge"]),) * 2
        elif "height" in processor.size and "width" in processor.size:
            resize, target = "squash", (int(processor.size["height"]), int(processor.size["width"]))
        else:
            raise UserError(
                f"{source}: size has the keys {', '.join(processor.size)}. shortest_edge is needed."
                " Correct the preprocessor configuration."
            )
    if getattr(processor, "do_center_crop", False):  # SigLIP's processor has no crop
        result: tuple[int, int] | None = (int(processor.crop_size["height"]), int(processor.crop_size["width"]))
    else:
        result = target if resize == "squash" else None
    if result != size:
        found = "images of different sizes" if result is None else f"images of {result[0]} x {result[1]} pixels"
        raise UserError(
            f"{source}: it makes {found}, but the vision tower needs {size[0]} x {size[1]}."
            " Correct the preprocessing in the folder."
        )
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if processor.do_normalize:
        mean = _channels(processor.image_mean, f"{source}: image_mean")
        std = _channels(processor.image_std, f"{source}: image_std")
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    return ImagePreprocess(size, mean, std, int(processor.resample), resize, target, floor=True, scale=scale)


def _pair(value: Any, source: str) -> tuple[int, int]:
    """Return a size as (height, width)."""
    sides = [value] if isinstance(value, (int, float)) else list(value)
    if len(sides) not in (1, 2):
        raise UserError(f"{source} is {value}. It must be one number, or height and width.")
    return int(sides[0]), int(sides[-1])


def _channels(value: Any, source: str) -> tuple[float, ...]:
    """Return one number per channel."""
    numbers = tuple(float(item) for item in (value if isinstance(value, (list, tuple)) else [value] * 3))
    if len(numbers) != 3:
        raise UserError(f"{source} has {len(numbers)} values. One per channel is needed.")
    return numbers
