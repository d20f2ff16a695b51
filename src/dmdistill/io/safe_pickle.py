"""Checkpoints that are pickles, read without running them: values, tensors, and inert records in place of objects.

EDM's files (Karras et al. 2022) carry the source code of their classes, which EDM's own loader runs. Here it is a text.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.io.pickle_vm import Name, Record, load, text

__all__ = ["FAILURES", "Record", "read_pickle"]

FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before it wrote zip files

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u8": "Q", "b1": "?"}  # NumPy's names to struct's
MODULES = ("ModuleDict", "ModuleList", "Sequential")


def read_pickle(file: Path) -> Any:
    """What a pickle holds. A dict's keys and a set's members are texts; a Record may hold itself.

    ValueError, naming the file, where it is missing, cut short or damaged, or asks for a name that is not allowed.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            return load(stream, Rebuild(len(stream)).calls)  # type: ignore[arg-type]
    except FAILURES as error:
        why = " ".join(f"{error or type(error).__name__}".split())[:300]
        raise ValueError(f"{file} cannot be read as a checkpoint: {why}") from None


class Rebuild:
    """The calls that a checkpoint may make.

    Args:
        size: bytes of the file. All that is built from it may not be larger, but for the second life of storages as
            tensors: small files cannot ask for large memory by naming one storage often.
    """

    def __init__(self, size: int) -> None:
        self.left = 2 * size
        self.calls: dict[str, Callable[..., Any]] = {
            "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
            "torch.storage._load_from_bytes": self.storage,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": parameter,
            "collections.OrderedDict": dict_of_nothing,
            "dnnlib.util.EasyDict": dict_of_nothing,
            "numpy.dtype": dtype,
            "_codecs.encode": self.encoded,
        }
        self.calls |= dict.fromkeys(["builtins.set", "__builtin__.set"], self.distinct)
        self.calls |= dict.fromkeys([f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")], scalar)
        self.calls |= {f"torch.nn.modules.container.{name}": module(name) for name in MODULES}

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("it asks for more than it holds")

    def storage(self, data: bytes) -> Tensor:
        """All of a storage, one dimension, from what torch.save made of it: five small pickles, a length, the bytes."""
        if type(data) is not bytes:
            raise ValueError(f"a storage of {type(data).__name__}")
        self.spend(len(data))
        stream = io.BytesIO(data)
        if load(stream, {}) != MAGIC or load(stream, {}) != PROTOCOL or load(stream, {})["little_endian"] is not True:
            raise ValueError("a storage in a format that is not known")
        kind, count = load(stream, dict.fromkeys(STORAGES, refused), described)
        load(stream, {})
        tail = memoryview(data)[stream.tell() :]
        if len(tail) != 8 + count * kind.itemsize or int.from_bytes(tail[:8], "little") != count:
            raise ValueError(f"a storage of {count} values, whose bytes are not there")
        if kind == torch.bool:
            return torch.frombuffer(bytearray(tail[8:]), dtype=torch.uint8) != 0 if count else torch.empty(0).bool()
        return torch.frombuffer(bytearray(tail[8:]), dtype=kind) if count else torch.empty(0, dtype=kind)

    def tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ) -> Tensor:
        """A view of a storage. ValueError where it would reach outside or be larger than it."""
        numbers = (offset, *size, *stride) if type(size) is type(stride) is tuple else ("no tuple",)
        if type(storage) is not Tensor or len(size) != len(stride) or len(size) > 8 or len(rest) not in (2, 3):
            raise ValueError("a tensor of no storage, size and stride")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor whose offset, size or stride are no numbers of values")
        count = product(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
        if count > len(storage) or last > len(storage) - (count > 0):
            raise ValueError(f"a tensor {size} that reaches outside of its storage of {len(storage)} values")
        self.spend(count * storage.itemsize)
        return storage.as_strided(size, stride, offset)

    def encoded(self, words: str, encoding: str) -> bytes:
        """Bytes, as protocol 2 writes them."""
        if (type(words), encoding) != (str, "latin1"):
            raise ValueError("bytes that are not written as text in latin1")
        self.spend(len(words))
        return words.encode("latin1")

    def distinct(self, items: list[str]) -> set[str]:
        if type(items) is not list:
            raise ValueError(f"a set of {type(items).__name__}")
        self.spend(len(items))
        return set(map(text, items))


def product(size: tuple[int, ...]) -> int:
    count = 1
    for n in size:
        count *= n
    return count


def described(pid: Any) -> tuple[torch.dtype, int]:
    """dtype and count of values of a storage, from the persistent id that stands for it."""
    match pid:
        case ("storage", Name(dotted=kind), _, _, int(count), None) if count >= 0:
            return STORAGES[kind], count
    raise ValueError("a storage that is not described as torch.save does")


def refused(*_: Any) -> None:
    raise ValueError("it calls the class of a storage")


def parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    """Only the values of a parameter are kept."""
    if type(data) is not Tensor:
        raise ValueError(f"a parameter of {type(data).__name__}")
    return data


def persistent_object(meta: dict[str, Any]) -> Record:
    """EDM's persistent objects carry the source code of their class; it is not looked at."""
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("state")) is not dict:
        raise ValueError("a persistent object without a state")
    return Record(text(meta.get("class_name")), meta["state"])


def dict_of_nothing() -> dict[str, Any]:
    """Dictionaries of other classes; their items come by later opcodes."""
    return {}


def module(name: str) -> Callable[[], Record]:
    return lambda: Record(name)


def dtype(name: str, *_: bool) -> Record:
    if SCALARS.get(text(name)) is None:
        raise ValueError(f"NumPy values of type {name[:20]!r}, allowed: {', '.join(SCALARS)}")
    return Record(f"numpy.dtype {name}")


def scalar(kind: Record, data: bytes) -> float:
    """A NumPy scalar as a Python number."""
    order, name = ">" if kind.state and kind.state[1] == ">" else "<", kind.kind.removeprefix("numpy.dtype ")
    try:
        return struct.unpack(order + SCALARS[name], data)[0]
    except struct.error:
        raise ValueError(f"a NumPy {name} of {len(data)} bytes") from None
