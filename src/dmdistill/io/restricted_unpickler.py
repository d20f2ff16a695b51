"""Unpickler of values and containers, which imports nothing and calls only functions of an allow-list.

It extends Python's own implementation, `pickle._Unpickler`, as joblib does: the C implementation, whose opcodes cannot
be replaced, hashes any key of a dict (of deeply nested tuples that ends the process), reaches `__setstate__` and
`setattr` of any value by BUILD, and allocates what indices of its memo claim.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

__all__ = ["Budget", "Name", "Record", "check_text", "load_restricted"]

OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
MAX_OPCODES = 500_000  # EDM's largest checkpoint, of 296 M weights, has 72,000


@dataclass(eq=False, slots=True)
class Record:
    """An object whose class is not imported: the class's name and the object's state. It has no behaviour."""

    kind: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class Name:
    """A global of a pickle: its dotted name, and the function of the allow-list that stands for it."""

    dotted: str
    function: Callable[..., Any]


class Budget:
    """What one file may use, of opcodes and of memory: nested pickles share it.

    Args:
        size: bytes of the file. What is built from it may not be larger, but for a storage's second life as a tensor.
    """

    def __init__(self, size: int) -> None:
        self.bytes, self.opcodes = 2 * size, MAX_OPCODES

    def spend_bytes(self, amount: int) -> None:
        """Count bytes that a call allocates. ValueError where they are more than the file has."""
        self.bytes -= amount
        if self.bytes < 0:
            raise ValueError("it asks for more than it holds")

    def spend_opcodes(self, stream: BinaryIO) -> None:
        """Count the opcodes of the next pickle of a stream, which stays where it is. ValueError for a forbidden one."""
        start = stream.tell()
        for opcode, _, _ in pickletools.genops(stream):
            self.opcodes -= 1
            if opcode.name not in OPCODES:
                raise ValueError(f"it uses the opcode {opcode.name}, which no checkpoint needs")
            if self.opcodes < 0:
                raise ValueError(f"it has more than {MAX_OPCODES} opcodes")
        stream.seek(start)


def load_restricted(
    stream: BinaryIO,
    allowed: Mapping[str, Callable[..., Any]],
    budget: Budget,
    *,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Load the next pickle of a seekable stream, which is left at its end.

    Args:
        stream: of the pickle.
        allowed: the function that stands for each allowed global; any other is refused when it is met (ValueError).
        budget: of the file.
        persistent_load: result of a persistent id; None to refuse them.
    """
    budget.spend_opcodes(stream)
    unpickler = RestrictedUnpickler(stream, encoding="latin1")
    unpickler.allowed, unpickler.persistent = allowed, persistent_load
    return unpickler.load()


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickler whose containers are exactly list, dict, set and tuple, with texts as keys, and hold inert values."""

    allowed: Mapping[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Name:
        """Return the stand-in of a global."""
        dotted = f"{module}.{name}"
        if dotted not in self.allowed:
            raise ValueError(f"it asks for {dotted[:80]!r}, which is never run or imported")
        return Name(dotted, self.allowed[dotted])

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for a persistent id."""
        if self.persistent is None:
            raise ValueError("it refers to values outside the file")
        return self.persistent(pid)

    def top(self, kind: type) -> Any:
        """Return the value on top of the stack, which must be of exactly this type."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"it treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def restricted_append(self) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def restricted_appends(self) -> None:
        values = self.pop_mark()
        self.top(list).extend(values)

    def restricted_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.top(dict)[check_text(key)] = value

    def restricted_setitems(self) -> None:
        values = self.pop_mark()
        self.top(dict).update(zip(map(check_text, values[::2]), values[1::2], strict=True))

    def restricted_additems(self) -> None:
        values = self.pop_mark()
        self.top(set).update(map(check_text, values))

    def restricted_call(self) -> None:
        """REDUCE and NEWOBJ."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(name).__name__}")
        self.stack.append(name.function(*arguments))

    def restricted_build(self) -> None:
        """BUILD: the state of a record, once; no other value has any."""
        state = self.stack.pop()
        record = self.top(Record)
        if record.state is not None:
            raise ValueError(f"it changes a {record.kind} that is complete")
        record.state = state

    dispatch: ClassVar[Any] = {
        ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)]
        for opcode in pickletools.opcodes
        if opcode.name in OPCODES
    } | {
        pickle.APPEND[0]: restricted_append,
        pickle.APPENDS[0]: restricted_appends,
        pickle.SETITEM[0]: restricted_setitem,
        pickle.SETITEMS[0]: restricted_setitems,
        pickle.ADDITEMS[0]: restricted_additems,
        pickle.REDUCE[0]: restricted_call,
        pickle.NEWOBJ[0]: restricted_call,
        pickle.BUILD[0]: restricted_build,
    }


def check_text(value: Any) -> str:
    """Return a key of a dict or set. ValueError where it is no text: the hash of a text cannot be chosen by a file."""
    if type(value) is not str:
        raise ValueError(f"it uses a {type(value).__name__} where a name belongs")
    return value
