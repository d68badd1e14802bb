"""Image files and images in memory as RGB pictures.

Corpora, the search index and :meth:`speechclip.api.SpeechCLIP.encode_image` share one policy:

* Colours: 8 bits per channel, by PIL's ``convert("RGB")``, as in CLIP's training preprocessing (OpenAI, open_clip).
  Colour profiles are ignored, as there.
* Only the first frame of an animation is used, as there.
* 16-bit grey: 65535 is white. CLIP's preprocessing clips all values above 255 to white.
* Floating-point grey: the smallest of 1, 255 and 65535 that no pixel exceeds is white. Other 32-bit integers follow the
  same rule without 1.
* EXIF orientation is applied, so that the picture stands upright as in every viewer. CLIP's preprocessing ignores it.
* Transparent pixels are blended with white, as on a page. CLIP's preprocessing shows their hidden colours.
* A picture with more than ``MAX_PIXELS`` pixels, or with one side over ``MAX_RATIO`` times the other, is refused before
  it is decoded: decompression and the resize to CLIP's input would take gigabytes.

The policy equals CLIP's preprocessing for 8-bit pictures without orientation and without transparency.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from speechclip.common.errors import UserError, first_line
from speechclip.data.messages import LIBTIFF, log_stderr, log_warnings
from speechclip.data.sources import Source, open_source

MAX_PIXELS = 178_956_970  # PIL refuses larger pictures by default
MAX_RATIO = 100  # of the sides; the resize to 336 pixels then takes at most 34 MB

ImageInput = Image.Image | np.ndarray | str | os.PathLike[str] | bytes | BinaryIO | Mapping[str, Any]

_CHECK_SIZE = (8, 8)  # pixels; a JPEG decoder then uses its smallest scale, and still reads the whole file
_TIFF = (b"II*\0", b"MM\0*")  # the first bytes of files
_SIGNATURES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Decoders report damaged data with many classes of exceptions.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error
)  # fmt: skip
_INPUTS = "Give a path, the bytes of a file, a PIL image or a uint8 array [height, width, 3]."


def load_image(source: Source, name: str = "") -> Image.Image:
    """Decode an image to RGB by the policy of this module.

    Args:
        source: path of a file, or its content.
        name: the content's name in error messages.

    Raises:
        UserError: the file is missing, not an image, truncated or corrupt.
        UserError: the picture is too large, too long, or has no range of grey values.
    """
    with _opened(source, name) as (name, image):
        return to_rgb(image, name)


def check_image(source: Source, name: str = "") -> None:
    """Check that :func:`load_image` decodes an image. For JPEG this is several times faster.

    Args:
        source: path of a file, or its content.
        name: the content's name in error messages.

    Raises:
        UserError: the image cannot be used; see :func:`load_image`.
    """
    with _opened(source, name) as (name, image):
        if image.format in ("JPEG", "MPO"):
            image.draft("RGB", _CHECK_SIZE)
            image.load()
        else:
            to_rgb(image, name)


def as_image(item: Any, name: str = "image") -> Image.Image:
    """Return an image that a caller passed in one of many forms as RGB.

    Args:
        item: a path, the bytes of a file, an open file, a PIL image, a uint8 array or tensor [height, width, 3 or 4] or
            [height, width], or a dictionary with ``bytes`` or ``path`` as ``datasets`` returns it.
        name: the argument in error messages.

    Raises:
        UserError: the image cannot be used; see :func:`load_image`.
        UserError: the type or the shape is wrong.
    """
    if isinstance(item, Mapping):
        if item.get("bytes") is None and item.get("path") is None:
            raise UserError(f"{name}: a dictionary without bytes and path. {_INPUTS}")
        name = str(item.get("path") or name)
        item = item["path"] if item.get("bytes") is None else item["bytes"]
    if isinstance(item, (str, os.PathLike)):
        return load_image(os.fspath(item))
    if isinstance(item, (bytes, bytearray, memoryview)):
        return load_image(bytes(item), name)
    if isinstance(item, Image.Image):
        with _decoding(name):
            return to_rgb(item, name)
    if hasattr(item, "read"):
        content = item.read()
        if not isinstance(content, bytes):
            raise UserError(f"{name}: a file in text mode. Open it with mode 'rb'.")
        return load_image(content, str(getattr(item, "name", name)))
    if hasattr(item, "detach"):  # a tensor
        item = item.detach().cpu().numpy()
    if not isinstance(item, np.ndarray):
        raise UserError(f"{name}: {type(item).__name__} is not an image. {_INPUTS}")
    if item.dtype != np.uint8 or item.ndim not in (2, 3) or not item.size or item.shape[2:] not in ((), (3,), (4,)):
        raise UserError(f"{name}: an array of {item.dtype} with shape {item.shape} is not an image. {_INPUTS}")
    check_size((item.shape[1], item.shape[0]), name)
    return to_rgb(Image.fromarray(np.ascontiguousarray(item)), name)


def list_images(images: Any, name: str = "images") -> list[Any]:
    """Return the images of an argument that holds one or several: an array [N, height, width, 3] holds N images.

    Args:
        images: one image, or a sequence or other iterable of images.
        name: the argument in error messages.

    Raises:
        UserError: it is empty, or not an image.
    """
    single = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Image.Image)
    if isinstance(images, single) or hasattr(images, "read") or getattr(images, "ndim", 4) in (2, 3):
        return [images]
    if not isinstance(images, Iterable) or getattr(images, "ndim", 4) == 0:
        raise UserError(f"{name}: {type(images).__name__} is not an image. {_INPUTS}")
    items = list(images)
    if not items:
        raise UserError(f"{name}: empty. Give at least one image.")
    return items


def check_size(size: tuple[int, int], name: str) -> None:
    """Check the size of a picture before it is decoded. This is the only guard against decompression bombs.

    Args:
        size: width and height in pixels.
        name: the picture in the error message.

    Raises:
        UserError: the picture is empty, or over ``MAX_PIXELS`` or ``MAX_RATIO``.
    """
    width, height = size
    if not width or not height:
        raise UserError(f"{name}: image without pixels ({width}x{height}). Copy the file again.")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: image too large ({width}x{height} pixels, at most {MAX_PIXELS:,}). Shrink it.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UserError(f"{name}: image too long ({width}x{height} pixels, at most {MAX_RATIO}:1). Crop it.")


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image as RGB by the policy of this module, without metadata: a second call changes nothing.

    Args:
        image: an image of any mode.
        name: the image in error messages.

    Raises:
        UserError: the picture is too large, too long, or has no range of grey values.
    """
    check_size(image.size, name)
    image.load()
    orientation = _orientation(image)  # PIL turns TIFF files itself and then removes the tag
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = _grey_to_8_bits(image, name).convert("RGB")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(layer, mask=layer.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}
    return rgb


def _grey_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        raise UserError(f"{name}: NaN or infinite pixels. Save it with 8 bits per channel.")
    if image.mode.startswith("I;16") or image.format == "PPM":
        white = 65535.0  # PIL scales the values of a PPM file to this range
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((value for value in ranges if highest <= value), 0.0)
    if lowest < 0 or not white:
        raise UserError(f"{name}: pixels from {lowest:g} to {highest:g}. Save it with 8 bits per channel.")
    return Image.fromarray(np.rint(values * np.float32(255.0 / white)).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 without EXIF data. Damaged EXIF data do not make a picture unusable."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # PIL's parser raises many classes
        return 1


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[tuple[str, Image.Image]]:
    """Open an image without decoding it, and turn decoder errors into a UserError."""
    name, file, _ = open_source(source, name, "image")
    with file, _decoding(name), contextlib.ExitStack() as stack:
        start = file.read(4)
        file.seek(0)
        if start in _TIFF:
            stack.enter_context(log_stderr(name, LIBTIFF))
        try:
            image = stack.enter_context(Image.open(file))
        except Image.UnidentifiedImageError as error:
            if start in _TIFF + _SIGNATURES:
                raise UserError(f"{name}: truncated or corrupt image (no header). Copy the file again.") from error
            raise
        check_size(image.size, name)
        yield name, image


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn decoder errors into a UserError, and decoder warnings into log lines."""
    try:
        with log_warnings(name):
            yield
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image. Save it as JPEG or PNG.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: image too large (over {MAX_PIXELS:,} pixels). Shrink it.") from error
    except MemoryError as error:
        raise UserError(f"{name}: image too large (the memory is not enough). Shrink it.") from error
    except _DECODER_ERRORS as error:
        raise UserError(f"{name}: truncated or corrupt image ({first_line(error)}). Copy the file again.") from error
