"""A reader of files that ``torch.save`` and ``torch.jit.save`` wrote. No code of a file is executed.

It reads three containers: the zip archive (torch >= 1.6), the older stream of pickles, and TorchScript, whose code is
ignored. The tensors of an archive are memory-mapped.

``torch.load(weights_only=True, mmap=True)`` of torch 2.13 is not used for the zip archive, because it fails on hostile
and damaged files that the tests hold. It hashes a dictionary key of nested tuples: a key of a few hundred bytes takes
forever, and a deep key ends the process. It does not compare the size of a record with the size of its tensor, so a
short record gives the bytes of its neighbours. It also cannot restore a subclass of dict (Lightning's AttributeDict).
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.convert.unpickle import Name, Record, Unpickler

#: Prefixes of classes in files of trainers and of TorchScript. Objects become dictionaries of their attributes.
RECORDS = (
    "__torch__.", "argparse.Namespace", "avssl.", "easydict.", "fairseq.", "hydra.", "numpy.", "omegaconf.", "pathlib.",
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "torch.nn.modules.", "torch.optim.", "typing.", "enum.",
)  # fmt: skip
_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_MAX_EXPANSION = 100  # times that an archive may be larger unpacked; torch itself does not compress
_MAX_MODULES = 1_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
    """A flat array of values. ``values`` is set when the bytes are read."""

    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.values: Tensor | None = None


def read_torch_file(path: str | Path) -> Any:
    """Read a ``.pt``, ``.pth``, ``.ckpt`` or TorchScript file.

    Returns:
        Tensors, numbers, strings and containers. Objects of the classes in :data:`RECORDS` are dictionaries of their
        attributes.

    Raises:
        UserError: the file is missing, damaged or in another format.
        UserError: the file holds an object of any other class, or calls a function. The message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is missing. Check the path.")
    if zipfile.is_zipfile(path):
        return _Archive(path).read()
    with path.open("rb") as stream:
        if stream.read(4) == b"PK\x03\x04":
            raise UserError(
                f"{path}: damaged or truncated: a zip archive without its end. Copy or download the file again."
            )
        stream.seek(0)
        return _read_stream(path, stream)


def script_state(value: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript module.

    Args:
        value: the result of :func:`read_torch_file`.
        source: the file, for errors.

    Raises:
        UserError: the value is not a TorchScript module.
    """
    if not isinstance(value, Record) or not value.kind.startswith("__torch__."):
        raise UserError(f"{source}: not a TorchScript module. Use a checkpoint file.")
    found: dict[str, Tensor] = {}
    visited = 0

    def walk(record: Record, prefix: str) -> None:
        nonlocal visited
        visited += 1
        if visited > _MAX_MODULES:  # a module may hold another one twice, and so on
            raise UserError(f"{source}: more than {_MAX_MODULES} modules. Use a file from a source that you trust.")
        for name, item in record.items():
            if isinstance(item, Tensor):
                found[prefix + name] = item
            elif isinstance(item, Record):
                walk(item, f"{prefix}{name}.")

    try:
        walk(value, "")
    except RecursionError:
        raise UserError(f"{source}: modules nested too deeply. Use a file from a source that you trust.") from None
    return found


class _Archive:
    """The zip container."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: damaged or truncated ({error}). Copy or download the file again.") from error
        unpacked, packed = sum(info.file_size for info in self.file.infolist()), path.stat().st_size
        if unpacked > _MAX_EXPANSION * packed:
            raise UserError(
                f"{path}: would unpack from {packed} to {unpacked} bytes: refused."
                " Use a file from a source that you trust."
            )
        pickles = [name for name in self.file.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if not pickles:
            raise UserError(
                f"{path}: data.pkl is missing in the zip archive: not written by torch. Use a checkpoint file."
            )
        self.pickle = min(pickles, key=len)
        self.prefix = self.pickle.removesuffix("data.pkl")
        self._storages: dict[str, _Storage] = {}

    def read(self) -> Any:
        """Return the value."""
        with self.path.open("rb") as stream:
            self.memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        order = f"{self.prefix}byteorder"
        if order in self.file.namelist() and self._bytes(order) != b"little":
            raise UserError(f"{self.path}: written by a big-endian machine. Save it again on a little-endian machine.")
        unpickler = Unpickler(str(self.path), functions=_FUNCTIONS, records=RECORDS, storage=self._storage)
        return unpickler.load(io.BytesIO(self._bytes(self.pickle)))

    def _bytes(self, name: str) -> bytes:
        try:
            return self.file.read(name)
        except (KeyError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: {name} is missing or damaged. Copy or download the file again.") from error

    def _storage(self, persistent: Any) -> _Storage:
        dtype, key, count = _described(persistent, str(self.path))
        if key not in self._storages:
            storage = self._storages[key] = _Storage(dtype, count)
            storage.values = self._map(f"{self.prefix}data/{key}", dtype, count)
        return self._storages[key]

    def _map(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return the values of a record, memory-mapped if the record is not compressed."""
        size = count * dtype.itemsize
        try:
            info = self.file.getinfo(name)
        except KeyError:
            raise UserError(
                f"{self.path}: {name} is missing: damaged or truncated. Copy or download the file again."
            ) from None
        if info.file_size != size:
            raise UserError(
                f"{self.path}: {name} has {info.file_size} bytes, its tensor needs {size}: damaged."
                " Copy or download the file again."
            )
        if not count:
            return torch.empty(0, dtype=dtype)
        if info.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self._bytes(name)), dtype=dtype)
        lengths = self.memory[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        if start + size > len(self.memory):
            raise UserError(
                f"{self.path}: {name} ends after the end of the file: truncated. Copy or download the file again."
            )
        if start % dtype.itemsize:
            return torch.frombuffer(bytearray(self.memory[start : start + size]), dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)


def _read_stream(path: Path, stream: BinaryIO) -> Any:
    """Read the older container: magic number, version, system, value, storage keys, then the bytes of each storage."""
    storages: dict[str, _Storage] = {}

    def storage(persistent: Any) -> _Storage:
        dtype, key, count = _described(persistent, str(path))
        if len(persistent) > 5 and persistent[5] is not None:
            raise UserError(f"{path}: a storage is a view of another one. Save the file again with a newer torch.")
        return storages.setdefault(key, _Storage(dtype, count))

    unpickler = Unpickler(str(path), functions=_FUNCTIONS, records=RECORDS, storage=storage)
    magic = unpickler.load(stream)
    if magic != _LEGACY_MAGIC:
        raise UserError(f"{path}: a pickle, but not written by torch. Use a checkpoint file.")
    unpickler.load(stream)  # protocol version
    system = unpickler.load(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError(f"{path}: written by a big-endian machine. Save it again on a little-endian machine.")
    value = unpickler.load(stream)
    for key in unpickler.load(stream):
        if key not in storages:
            raise UserError(f"{path}: no tensor uses the storage {key!r}: damaged. Copy or download the file again.")
        target = storages.pop(key)
        head = stream.read(8)
        data = stream.read(target.count * target.dtype.itemsize)
        if head != struct.pack("<q", target.count) or len(data) != target.count * target.dtype.itemsize:
            raise UserError(f"{path}: damaged or truncated in storage {key!r}. Copy or download the file again.")
        target.values = torch.frombuffer(bytearray(data or bytes(8)), dtype=target.dtype)
    if storages:
        raise UserError(
            f"{path}: the values of {len(storages)} storages are missing: damaged or truncated."
            " Copy or download the file again."
        )
    try:
        return _materialise(value)
    except RecursionError:
        raise UserError(f"{path}: containers nested too deeply. Use a file from a source that you trust.") from None


def _described(persistent: Any, source: str) -> tuple[torch.dtype, str, int]:
    """Return dtype, key and number of values of a persistent id ``("storage", type, key, device, count)``."""
    fits = isinstance(persistent, tuple) and len(persistent) >= 5 and persistent[0] == "storage"
    if not fits or not isinstance(persistent[4], int) or persistent[4] < 0:
        raise UserError(f"{source}: a reference is not a storage. Copy or download the file again.")
    kind = str(persistent[1]).rsplit(".", 1)[-1]
    if not isinstance(persistent[1], Name) or kind not in _DTYPES:
        raise UserError(
            f"{source}: a storage has the type {persistent[1]}, not one of {', '.join(_DTYPES)}."
            " Copy or download the file again."
        )
    return _DTYPES[kind], str(persistent[2]), persistent[4]


class _Pending:
    """A tensor of the older container. Its bytes follow later."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.view = storage, (offset, size, stride)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """Build a tensor as a view of a storage, within its bounds."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError("a tensor of impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= storage.count:
        raise ValueError("a tensor beyond its storage")
    pending = _Pending(storage, offset, size, stride)
    return pending if storage.values is None else _tensor(pending)


def _tensor(pending: _Pending) -> Tensor:
    offset, size, stride = pending.view
    if 0 in size or pending.storage.values is None:
        return torch.empty(size, dtype=pending.storage.dtype)
    return torch.as_strided(pending.storage.values, size, stride, offset)


def _materialise(value: Any) -> Any:
    """Replace pending tensors, in place if the container is mutable."""
    seen: set[int] = set()
    tuples: dict[int, tuple[Any, Any]] = {}  # by id; the tuple is kept, so that its id is not used again

    def walk(item: Any) -> Any:
        if isinstance(item, _Pending):
            return _tensor(item)
        if isinstance(item, (dict, list)) and id(item) not in seen:
            seen.add(id(item))
            pairs = list(item.items()) if isinstance(item, dict) else list(enumerate(item))
            for key, part in pairs:
                item[key] = walk(part)
        if isinstance(item, tuple):
            if id(item) not in tuples:
                tuples[id(item)] = item, tuple(walk(part) for part in item)
            return tuples[id(item)][1]
        return item

    return walk(value)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Build the tensor that a tensor subclass was made of."""
    if function not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"):
        raise ValueError(f"{function} is refused")
    return _FUNCTIONS[function](*arguments)


def _latin(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"an encoding {encoding}")
    return text.encode("latin1")


_FUNCTIONS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.jit._pickle.build_intlist": list,
    "torch.jit._pickle.build_doublelist": list,
    "torch.jit._pickle.build_boollist": list,
    "torch.jit._pickle.build_tensorlist": list,
    "torch.jit._pickle.restore_type_tag": lambda value, kind: value,
    "torch.Size": tuple,
    "torch.device": lambda *names: ":".join(str(name) for name in names),
    "collections.OrderedDict": dict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": dict,
    "_codecs.encode": lambda text, encoding="latin1": _latin(
        text, encoding
    ),  # bytes, in protocols without an operation for them
} | {
    f"{module}.{kind.__name__}": kind
    for module in ("builtins", "__builtin__")
    for kind in (set, frozenset, dict, list, tuple)
}
