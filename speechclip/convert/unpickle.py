"""A pickle interpreter that imports and calls nothing that a pickle names.

Python's unpickler imports and calls every function that a file names. This interpreter executes the opcodes itself. Its
results are tensors (built by the reader's own code), numbers, strings and containers. Objects of a few known classes,
such as the configuration of a trainer, become dictionaries of their attributes. Everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from speechclip.common.errors import UserError

_MARK = object()
_MAX_ITEMS = 50_000_000  # opcodes; the largest published checkpoint has about ten thousand


class Name(str):
    """The name of a class or function in a pickle, as ``module.name``. It is never imported."""

    __slots__ = ()


class Record(dict[Any, Any]):
    """An object of a class that is not imported: a dictionary of its attributes."""

    def __init__(self, kind: Name, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = tuple(arguments)

    def set_state(self, state: Any) -> None:
        """Store the state that the object's ``__setstate__`` or ``__dict__`` would have received."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.update(part)
            elif part is not None:
                self["state"] = part


Rebuild = Callable[..., Any]


class Unpickler:
    """An interpreter of one pickle.

    Args:
        source: the file, for errors.
        functions: functions of the reader by the name of the function they replace. They accept any arguments and only
            build values.
        records: prefixes of class names. Objects of these classes become a :class:`Record`.
        storage: builds the value of a persistent id.
    """

    def __init__(
        self, source: str, *, functions: dict[str, Rebuild], records: tuple[str, ...], storage: Callable[[Any], Any]
    ) -> None:
        self.source = source
        self._functions = functions
        self._records = records
        self._storage = storage

    def load(self, stream: BinaryIO) -> Any:
        """Return the value of the pickle at the stream's position. The stream is then at the end of the pickle.

        Raises:
            UserError: the pickle is damaged.
            UserError: the pickle needs a function or an operation that is not allowed. The message names it.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > _MAX_ITEMS:
                    raise UserError(
                        f"{self.source}: more than {_MAX_ITEMS} pickle operations."
                        " Use a file from a source that you trust."
                    )
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except UserError:
            raise
        except (
            ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError, MemoryError,
        ) as error:  # fmt: skip
            raise UserError(
                f"{self.source}: damaged pickle ({type(error).__name__}: {error}). Give a file of torch."
            ) from error
        raise UserError(f"{self.source}: damaged pickle (its end is missing). Copy or download the file again.")

    def _step(self, name: str, argument: Any) -> None:
        """Execute one operation."""
        if name in _NOTHING:
            return
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise UserError(
                f"{self.source}: needs the pickle operation {name}, which is refused."
                " Use a file from a source that you trust."
            )

    def _since_mark(self) -> list[Any]:
        at = next((i for i in range(len(self._stack) - 1, -1, -1) if self._stack[i] is _MARK), None)
        if at is None:
            raise IndexError("no mark")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(items)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items are added to a value that is not a dictionary")
        target.update(_pairs(pairs))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):
            target.setdefault("items", []).extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise TypeError("items are added to a value that is not a list")

    def _add(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise TypeError("members are added to a value that is not a set")
        target.update(_hashed(items))

    def _call(self, function: Any, arguments: Any, named: Any = None) -> Any:
        """Return the result of the reader's own function, or a record of the arguments."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("a value that is not a name is called")
        if function == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Name):
            return self._call(arguments[0], ())
        if function in self._functions:
            try:
                return self._functions[function](*arguments)
            except (TypeError, ValueError, KeyError, RuntimeError) as error:
                raise UserError(
                    f"{self.source}: {function} has arguments that do not fit ({error})."
                    " Copy or download the file again."
                ) from error
        if function.startswith(self._records):
            record = Record(function, arguments)
            record.update(named or {})
            return record
        raise UserError(
            f"{self.source}: calls {function}, which is refused: only plain values are read."
            " Use a file from a source that you trust."
        )

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Record):
            target.set_state(state)
        elif type(target) is dict and isinstance(state, dict):
            return  # attributes of an ordered dictionary; torch writes them for state dicts, and they hold no data
        else:
            raise UserError(
                f"{self.source}: changes the state of a {type(target).__name__}, which is refused."
                " Use a file from a source that you trust."
            )

    def _new(self, count: int) -> None:
        (*head,) = self._stack[-count:]
        del self._stack[-count:]
        self._stack.append(self._call(head[0], head[1], head[2] if count == 3 else None))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Name(f"{module}.{name}"))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name is not a string")
        self._stack.append(Name(f"{module}.{name}"))

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _persistent(self) -> None:
        self._stack.append(self._storage(self._stack.pop()))


_NOTHING = frozenset({"PROTO", "FRAME"})
_VALUES = frozenset(
    [
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BININT", "BININT1", "BININT2", "INT", "LONG",
        "LONG1", "LONG4", "BINFLOAT", "FLOAT",
    ]
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": set, "MARK": lambda: _MARK,
}  # fmt: skip


def _hashed(items: list[Any]) -> list[Any]:
    """Return the items if they may be keys. The hash of nested tuples can take forever."""
    for item in items:
        if isinstance(item, (tuple, frozenset)) and any(isinstance(part, (tuple, frozenset)) for part in item):
            raise TypeError("a key is a nested container")
    return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(_hashed(items[::2]), items[1::2], strict=True))


_ACTIONS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "TUPLE": lambda p, a: p._stack.append(tuple(p._since_mark())),
    "TUPLE1": lambda p, a: p._tuple(1),
    "TUPLE2": lambda p, a: p._tuple(2),
    "TUPLE3": lambda p, a: p._tuple(3),
    "LIST": lambda p, a: p._stack.append(p._since_mark()),
    "DICT": lambda p, a: p._stack.append(_pairs(p._since_mark())),
    "FROZENSET": lambda p, a: p._stack.append(frozenset(_hashed(p._since_mark()))),
    "APPEND": lambda p, a: p._append([p._stack.pop()]),
    "APPENDS": lambda p, a: p._append(p._since_mark()),
    "ADDITEMS": lambda p, a: p._add(p._since_mark()),
    "SETITEM": lambda p, a: p._set_items([p._stack.pop(), p._stack.pop()][::-1]),
    "SETITEMS": lambda p, a: p._set_items(p._since_mark()),
    "POP": lambda p, a: p._stack.pop(),
    "POP_MARK": lambda p, a: p._since_mark(),
    "DUP": lambda p, a: p._stack.append(p._stack[-1]),
    "PUT": lambda p, a: p._put(int(a)),
    "BINPUT": lambda p, a: p._put(a),
    "LONG_BINPUT": lambda p, a: p._put(a),
    "MEMOIZE": lambda p, a: p._put(len(p._memo)),
    "GET": lambda p, a: p._stack.append(p._memo[int(a)]),
    "BINGET": lambda p, a: p._stack.append(p._memo[a]),
    "LONG_BINGET": lambda p, a: p._stack.append(p._memo[a]),
    "GLOBAL": lambda p, a: p._global(a),
    "STACK_GLOBAL": lambda p, a: p._stack_global(),
    "REDUCE": lambda p, a: p._new(2),
    "NEWOBJ": lambda p, a: p._new(2),
    "NEWOBJ_EX": lambda p, a: p._new(3),
    "BUILD": lambda p, a: p._build(),
    "BINPERSID": lambda p, a: p._persistent(),
}
