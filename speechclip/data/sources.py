"""Audio and image files that a caller gives as a path or as content."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, cast

from speechclip.common.errors import UserError

Source = str | os.PathLike[str] | bytes


class Content(io.BytesIO):
    """Bytes of a file. Decoders may seek before the start of a damaged file, which must not raise an error."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the file; a position before its start changes nothing."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def open_source(source: Source, name: str, kind: str) -> tuple[str, BinaryIO, int]:
    """Open a file for reading.

    Args:
        source: path of the file, or its content.
        name: the file in error messages, "" for its path.
        kind: "audio" or "image".

    Returns:
        The name, the open file without a buffer, and its size in bytes.

    Raises:
        UserError: the file is missing, empty or not a file, or may not be read.
    """
    if isinstance(source, bytes):
        name, size, handle = name or f"the {kind} file", len(source), cast(BinaryIO, Content(source))
    else:
        name, path = name or os.fspath(source), Path(source)
        try:
            if not path.is_file():
                raise UserError(f"{name}: {'not a file' if path.exists() else f'missing {kind} file'}. Check the path.")
            size = path.stat().st_size
            handle = cast(BinaryIO, path.open("rb", buffering=0))
        except OSError as error:
            raise UserError(f"{name[:200]}: cannot be read ({error.strerror}). Check the path.") from error
    if not size:
        handle.close()
        raise UserError(f"{name}: empty {kind} file (0 bytes). Copy the file again.")
    return name, handle, size
