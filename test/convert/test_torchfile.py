"""Tests of the reader of torch files: values, refusals, and that no code of a file is executed."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import clip_tensors, save_script

from speechclip.common.errors import UserError
from speechclip.convert.torchfile import read_torch_file, script_state
from speechclip.convert.unpickle import Name, Record, Unpickler


def values() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32)
    return {
        "whole": base,
        "view": base.view(4, 6)[1:3, ::2],
        "transposed": base.view(4, 6).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "long": torch.tensor([2**40, -1]),
        "bool": torch.tensor([True, False]),
        "byte": torch.tensor([1, 255]).byte(),
        "double": torch.randn(3).double(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "plain": {"a": [1, 2.5, None, True, "x\u00e9", b"y", (1, (2,)), {3, 4}, frozenset({5}), 2**70, -7]},
        "ordered": collections.OrderedDict(z=1, a=2),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reader_restores_saved_values(tmp_path: Path, zipped: bool) -> None:
    written = values()
    torch.save(written, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    read = read_torch_file(tmp_path / "f.pt")
    assert list(read) == list(written)
    for name, value in written.items():
        if isinstance(value, torch.Tensor):
            assert read[name].dtype == value.dtype and torch.equal(read[name], value.detach()), name
        else:
            assert read[name] == value and type(read["ordered"]) is dict
    assert read["view"].untyped_storage().data_ptr() == read["whole"].untyped_storage().data_ptr()


def test_reader_never_changes_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "f.pt")
    before = (tmp_path / "f.pt").read_bytes()
    read_torch_file(tmp_path / "f.pt")["a"].fill_(1)
    assert (tmp_path / "f.pt").read_bytes() == before


def test_reader_gives_trainer_objects_as_dictionaries(tmp_path: Path) -> None:
    torch.save(
        {"args": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(x=[1])), "kind": argparse.Namespace},
        tmp_path / "f.pt",
    )
    read = read_torch_file(tmp_path / "f.pt")
    assert read == {"args": {"lr": 1e-4, "nested": {"x": [1]}}, "kind": "argparse.Namespace"}
    assert isinstance(read["args"], Record) and isinstance(read["kind"], str)


class Evil:
    """An object that executes a command when Python unpickles it."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


CALLS = {
    "posix.system": (os.system, "touch {}"),
    "builtins.eval": (eval, "open('{}', 'w')"),
    "builtins.getattr": (getattr, io, "open"),
    "builtins.exec": (exec, "open('{}', 'w')"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CALLS)
def test_reader_calls_nothing(tmp_path: Path, name: str, zipped: bool) -> None:
    function, *words = CALLS[name]
    mark = tmp_path / "ran"
    words = [word.format(mark) if isinstance(word, str) else word for word in words]
    if name == "builtins.getattr":
        words[0] = "io"
    torch.save(
        {"state_dict": {}, "x": Evil(function, *words)}, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError) as caught:
        read_torch_file(tmp_path / "f.pt")
    name = name.replace("builtins", "__builtin__")  # as protocol 2 writes it
    assert f"calls {name}, which is refused" in str(caught.value) and str(tmp_path / "f.pt") in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reader_shares_repeated_values(tmp_path: Path, zipped: bool) -> None:
    value: Any = (torch.ones(1),)
    for _ in range(60):
        value = (value, value)
    torch.save(value, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    read = read_torch_file(tmp_path / "f.pt")
    assert read[0] is read[1]
    for _ in range(60):
        read = read[1]
    assert torch.equal(read[0], torch.ones(1))


def test_script_state_refuses_module_bomb() -> None:
    record = Record(Name("__torch__.M"), ())
    for _ in range(60):
        outer = Record(Name("__torch__.M"), ())
        outer.update(a=record, b=record)
        record = outer
    with pytest.raises(UserError, match="^f: more than 1000000 modules. Use a file from a source that you trust.$"):
        script_state(record, "f")


def interpret(data: bytes) -> Any:
    reader = Unpickler("f", functions={"torch.Size": tuple}, records=("safe.",), storage=lambda key: key)
    return reader.load(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", "calls os.system, which is refused"),
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00ls\x85R.", "damaged pickle"),
        (b"(S'ls'\nios\nsystem\n.", "operation INST"),
        (b"(cos\nsystem\nS'ls'\no.", "operation OBJ"),
        (b"\x82\x01.", "operation EXT1"),
        (b"\x80\x02ctorch\nSize\n}X\x01\x00\x00\x00aK\x01sb.", "changes the state of a Name"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "calls os.system, which is refused"),
        (b"\x80\x02csafe.x\nA\n)\x81cos\nsystem\n)\x81b.", "calls os.system, which is refused"),
        (b"\x80\x02K\x01K\x02\x81.", "damaged pickle"),
        (b"\x80\x02]K\x01K\x02s.", "damaged pickle"),
        (b"\x80\x02K\x01", "damaged pickle"),
        (b"", "damaged pickle"),
        (b"\x80\x02h\x05.", "damaged pickle"),
        (b"\x80\x02t.", "damaged pickle"),
        (
            b"\x80\x02ccopyreg\n_reconstructor\ncsubprocess\nPopen\nc__builtin__\nobject\nN\x87R.",
            "calls subprocess.Popen",
        ),
    ],
)
def test_unpickler_refuses_hostile_pickles(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        interpret(data)


def test_unpickler_gives_names_as_text() -> None:
    found = interpret(pickle.dumps({"f": os.system}))
    assert found == {"f": f"{os.system.__module__}.system"} and isinstance(found["f"], Name)


@pytest.mark.parametrize("protocol", range(6))
def test_unpickler_reads_every_protocol(protocol: int) -> None:
    value = {"a": [1, -1, 300, 70000, 2**40, 1.5, "\u00fc", None, True, ()], "b": {"c": (1, 2, 3, 4)}}
    assert interpret(pickle.dumps(value, protocol)) == value


def archived(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
    return path


KEY_BOMB = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))  # a pair of the last pair


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}()q\x00" + KEY_BOMB + b"K\x01u.", "a key is a nested container"),
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", "a key is a nested container"),
        (b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.", "bytearray"),
    ],
    ids=["shared", "deep", "large"],
)
def test_reader_refuses_files_that_harm_torch_load(tmp_path: Path, data: bytes, message: str) -> None:
    """``torch.load(weights_only=True)`` of torch 2.13 hangs, crashes or asks for a terabyte with these files."""
    with pytest.raises(UserError, match=message):
        read_torch_file(archived(tmp_path / "f.pt", data))


def test_reader_refuses_record_of_wrong_size(tmp_path: Path) -> None:
    """``torch.load(mmap=True)`` reads the bytes after the record instead."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "f.pt", "w") as short:
        for name in whole.namelist():
            content = whole.read(name)
            short.writestr(name, content[:4] if name.endswith("data/0") else content)
    with pytest.raises(UserError, match="has 4 bytes, its tensor needs 16: damaged"):
        read_torch_file(tmp_path / "f.pt")


def rebuilt(tmp_path: Path, size: Any, stride: Any, offset: Any) -> Any:
    class Tensorlike:
        def __reduce__(self) -> Any:
            storage = torch.arange(6.0).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, collections.OrderedDict())

    torch.save(Tensorlike(), tmp_path / "f.pt")
    return read_torch_file(tmp_path / "f.pt")


def test_reader_keeps_tensor_within_storage(tmp_path: Path) -> None:
    assert rebuilt(tmp_path, (2, 2), (3, 1), 1).tolist() == [[1, 2], [4, 5]]
    for size, stride, offset in (
        ((7,), (1,), 0),
        ((2,), (1,), 5),
        ((2,), (-1,), 3),
        ((2, 2), (6, 1), 0),
        ((2,), (1, 1), 0),
    ):
        with pytest.raises(UserError, match=r"_rebuild_tensor_v2 has arguments that do not fit"):
            rebuilt(tmp_path, size, stride, offset)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reader_refuses_every_truncation(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"a": torch.arange(100.0), "b": torch.ones(3)}, tmp_path / "whole", _use_new_zipfile_serialization=zipped
    )
    data = (tmp_path / "whole").read_bytes()
    for size in range(0, len(data) - 1, 7):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(UserError):
            read_torch_file(tmp_path / "cut")


def test_reader_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("x", "y")
    for name, message in (
        ("text", "pickle"),
        ("pickle", "not written by torch"),
        ("zip", "data.pkl is missing"),
        ("no", "no: is missing"),
    ):
        with pytest.raises(UserError, match=message):
            read_torch_file(tmp_path / name)


def test_script_state_equals_torch(tmp_path: Path) -> None:
    tensors = clip_tensors()
    path = save_script(tmp_path / "clip.pt", tensors)
    state = script_state(read_torch_file(path), str(path))
    expected = torch.jit.load(str(path)).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == expected[name].dtype for name in state)
    torch.save({"a": 1}, tmp_path / "plain.pt")
    with pytest.raises(UserError, match="not a TorchScript module"):
        script_state(read_torch_file(tmp_path / "plain.pt"), "plain.pt")
