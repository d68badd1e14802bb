"""Shards of the feature store: their headers, and the check that they belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from speechclip.common.errors import MissingFileError, UserError

FORMAT = "speechclip features 1"
DTYPES = {"float16": torch.float16, "float32": torch.float32}

_DTYPE_CODES = {"F16": torch.float16, "F32": torch.float32}  # as safetensors names them
_ENCODER_PREFIX = "encoder."


class Shard(NamedTuple):
    """The header of a shard.

    Attributes:
        metadata: format, layers and the description of the encoder.
        shapes: (layers, frames, width) of each utterance.
        dtypes: names of the dtypes, as safetensors writes them.
        offsets: first byte of the values of each utterance in the file.
    """

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: set[str]
    offsets: dict[str, int]


def make_metadata(encoder: Mapping[str, str], layers: Sequence[int]) -> dict[str, str]:
    """Return the metadata of a shard with these layers of an encoder."""
    for key, value in encoder.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"encoder[{key!r}] = {value!r}: the header holds strings")
    header = {"format": FORMAT, "layers": json.dumps([int(layer) for layer in layers])}
    return header | {f"{_ENCODER_PREFIX}{key}": value for key, value in sorted(encoder.items())}


def encoder_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the description of the encoder in the metadata of a shard."""
    return {
        key.removeprefix(_ENCODER_PREFIX): value for key, value in metadata.items() if key.startswith(_ENCODER_PREFIX)
    }


def read_header(path: Path) -> Shard:
    """Read the header of a shard without its tensors.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file is truncated, or it is not a shard.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            raw = handle.read(length) if length <= size else b""
    except FileNotFoundError:
        raise MissingFileError(path) from None
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        dtypes = {entry["dtype"] for entry in header.values()}
        offsets = {key: 8 + length + entry["data_offsets"][0] for key, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: truncated or corrupt features (no readable header). Extract the features again."
        ) from error
    if size != end:
        raise UserError(f"{path}: truncated or corrupt features ({size} of {end} bytes). Extract the features again.")
    if metadata.get("format") != FORMAT or not shapes or any(len(shape) != 3 for shape in shapes.values()):
        raise UserError(f"{path}: not a shard of features. Extract the features again.")
    return Shard(metadata, shapes, dtypes, offsets)


def dtype_of(path: Path, shard: Shard) -> torch.dtype:
    """Return the dtype of a shard. UserError if it has several or another one."""
    if len(shard.dtypes) != 1 or not shard.dtypes <= _DTYPE_CODES.keys():
        raise UserError(
            f"{path}: features of dtype {', '.join(sorted(shard.dtypes))}, not one of {', '.join(DTYPES)}."
            " Extract the features again."
        )
    return _DTYPE_CODES[next(iter(shard.dtypes))]


def check_same_origin(path: Path, shard: Shard, metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """Compare a shard with the expected metadata and dtype.

    Raises:
        UserError: they differ.
    """
    for key in sorted(metadata.keys() | shard.metadata.keys()):
        found, wanted = shard.metadata.get(key), metadata.get(key)
        if found != wanted:
            raise UserError(f"{path}: made with {key} {found!r}, not {wanted!r}. Remove the folder.")
    if (found_dtype := dtype_of(path, shard)) != dtype:
        raise UserError(f"{path}: made with dtype {found_dtype}, not {dtype}. Remove the folder.")
