"""Image files as the image tower wants them: RGB and fully decoded."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from speechclip.common.errors import UserError

_CHECK_SIZE = (8, 8)  # pixels; asks a JPEG decoder for its smallest scale, which still has to read the whole file


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file to RGB.

    Raises:
        UserError: the file is missing, not an image, truncated, corrupt, or too large to be a photograph.
    """
    return _decode(Path(path), draft=False)


def check_image(path: str | os.PathLike[str]) -> None:
    """UserError where :func:`load_image` would raise one; several times faster for JPEG."""
    _decode(Path(path), draft=True)


def _decode(path: Path, *, draft: bool) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'missing image file'}")
    if not path.stat().st_size:
        raise UserError(f"{path}: empty image file (0 bytes)")
    try:
        with Image.open(path) as image:
            if draft:
                image.draft("RGB", _CHECK_SIZE)
                image.load()
                return image
            return image.convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: image too large ({error})") from error
    # Decoders report broken data with whatever they have at hand.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise UserError(f"{path}: truncated or corrupt image ({error})") from error
