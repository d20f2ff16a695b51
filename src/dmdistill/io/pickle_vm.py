"""Pickle's stack machine without its powers: it knows values and containers, imports nothing and calls our own only.

`pickle.Unpickler` with a list of allowed names would still reach `__setstate__` and `setattr` by its BUILD opcode, and
allocate whatever sizes a file claims. Here a name is only looked up in a table of functions that `pickles.py` gives,
and opcodes that are not needed do not exist.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

__all__ = ["ComputeOptions", "Name", "Record", "load", "text"]

Calls = Mapping[str, Callable[..., Any]]
Persistent = Callable[[Any], Any]

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME"}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}  # the last of Python 2
VALUES = NUMBERS | TEXTS | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}


@dataclass(eq=False, slots=True)
class Record:
    """An object whose class is not imported: the class's name and the object's state. It does nothing."""

    kind: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class Name:
    """A global of the pickle: a name, never the thing."""

    dotted: str


def load(stream: BinaryIO, calls: Calls, persistent: Persistent | None = None) -> Any:
    """The next pickle of a stream, which is left at its end.

    ValueError or another error of a wrong program: ArithmeticError, AttributeError, LookupError, TypeError.

    Args:
        calls: what each allowed name does when it is called; any other name is refused as soon as it is met.
        persistent: what becomes of a persistent id; None refuses them.
    """
    compute = ComputeOptions(calls, persistent)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            break
        compute.step(opcode.name, argument)
    return compute.stack.pop()


class ComputeOptions:
    """The stack, the marks and the memo of a pickle."""

    def __init__(self, calls: Calls, persistent: Persistent | None) -> None:
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """One opcode. What only brings a value is in the tables above; the others are the methods of their names."""
        if opcode in VALUES:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode in TUPLES:
            self.stack.append(tuple(self.taken(TUPLES[opcode])))
        elif opcode not in IGNORED:
            method = OPCODES.get(opcode)
            if method is None:
                raise ValueError(f"it uses the opcode {opcode}, which no checkpoint needs")
            method(self, argument)

    def taken(self, count: int) -> list[Any]:
        """The top `count` values, off the stack."""
        if len(self.stack) < count:
            raise ValueError("it takes more values than there are")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """All values above the last mark, off the stack."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def top(self, kind: type) -> Any:
        """The value on top, which stays there, and must be of exactly this type."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"it treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        self.taken(1)

    def pop_mark(self, _: Any) -> None:
        self.marked()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def make_tuple(self, _: Any) -> None:
        values = tuple(self.marked())  # which changes the stack
        self.stack.append(values)

    def append(self, _: Any) -> None:
        (value,) = self.taken(1)
        self.top(list).append(value)

    def appends(self, _: Any) -> None:
        values = self.marked()
        self.top(list).extend(values)

    def setitem(self, _: Any) -> None:
        key, value = self.taken(2)
        self.top(dict)[text(key)] = value

    def setitems(self, _: Any) -> None:
        values = self.marked()
        self.top(dict).update(zip(map(text, values[::2]), values[1::2], strict=True))

    def additems(self, _: Any) -> None:
        values = self.marked()
        self.top(set).update(map(text, values))

    def name(self, words: str) -> None:
        """GLOBAL: "module name"."""
        self.allow(".".join(words.split(" ")))

    def stack_name(self, _: Any) -> None:
        module, name = map(text, self.taken(2))
        self.allow(f"{module}.{name}")

    def allow(self, dotted: str) -> None:
        if dotted not in self.calls:
            raise ValueError(f"it asks for {dotted[:80]!r}, which is never run or imported")
        self.stack.append(Name(dotted))

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: our own function of that name."""
        name, arguments = self.taken(2)
        if type(name) is not Name or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(name).__name__}")
        self.stack.append(self.calls[name.dotted](*arguments))

    def build(self, _: Any) -> None:
        """BUILD: the state of a record, once; no other value has any."""
        (state,) = self.taken(1)
        record = self.top(Record)
        if record.state is not None:
            raise ValueError(f"it changes a {record.kind} that is complete")
        record.state = state

    def persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("it refers to values outside the file")
        self.stack.append(self.persistent(*self.taken(1)))


OPCODES: dict[str, Callable[[ComputeOptions, Any], None]] = {
    "MARK": ComputeOptions.mark,
    "POP": ComputeOptions.pop,
    "POP_MARK": ComputeOptions.pop_mark,
    "MEMOIZE": ComputeOptions.memoize,
    "BINPUT": ComputeOptions.put,
    "LONG_BINPUT": ComputeOptions.put,
    "BINGET": ComputeOptions.get,
    "LONG_BINGET": ComputeOptions.get,
    "TUPLE": ComputeOptions.make_tuple,
    "APPEND": ComputeOptions.append,
    "APPENDS": ComputeOptions.appends,
    "SETITEM": ComputeOptions.setitem,
    "SETITEMS": ComputeOptions.setitems,
    "ADDITEMS": ComputeOptions.additems,
    "GLOBAL": ComputeOptions.name,
    "STACK_GLOBAL": ComputeOptions.stack_name,
    "REDUCE": ComputeOptions.call,
    "NEWOBJ": ComputeOptions.call,
    "BUILD": ComputeOptions.build,
    "BINPERSID": ComputeOptions.persistent_id,
}


def text(value: Any) -> str:
    """A key of a dict or set: texts only, whose hashes no file can choose."""
    if type(value) is not str:
        raise ValueError(f"it uses a {type(value).__name__} where a name belongs")
    return value
