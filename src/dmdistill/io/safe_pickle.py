"""Checkpoints that are pickles, read without running them: values, tensors, and inert records in place of objects.

EDM's files (Karras et al. 2022) carry the source code of their classes, which EDM's own loader runs. Here it is a text.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.io.restricted_unpickler import Budget, Name, Record, check_text, load_restricted

__all__ = ["Record", "read_pickle"]

FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
FAILURES = (*FAILURES, EOFError, pickle.UnpicklingError)

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
    """Read a pickled checkpoint. Keys of dicts and members of sets are texts; a Record may hold itself.

    Time and memory are bounded: at most 500,000 opcodes, and values of twice the file's size. ValueError, naming the
    file, where it is missing, truncated or damaged, or asks for a global that is not allowed.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            budget = Budget(len(stream))
            return load_restricted(stream, checkpoint_functions(budget), budget)  # type: ignore[arg-type]
    except FAILURES as error:
        reason = " ".join(f"{error or type(error).__name__}".split())[:300]
        raise ValueError(f"{file} cannot be read as a checkpoint: {reason}") from None


def checkpoint_functions(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Return the allow-list: what stands for each global that a checkpoint may name."""
    rebuild = Rebuild(budget)
    return {
        "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
        "torch.storage._load_from_bytes": rebuild.storage,
        "torch._utils._rebuild_tensor_v2": rebuild.tensor,
        "torch._utils._rebuild_parameter": parameter,
        "collections.OrderedDict": empty_dict,
        "dnnlib.util.EasyDict": empty_dict,
        "numpy.dtype": numpy_dtype,
        "numpy.core.multiarray.scalar": numpy_scalar,
        "numpy._core.multiarray.scalar": numpy_scalar,
        "_codecs.encode": rebuild.latin1_bytes,
        "builtins.set": rebuild.text_set,
        "__builtin__.set": rebuild.text_set,
        **{f"torch.nn.modules.container.{name}": module_record(name) for name in MODULES},
    }


class Rebuild:
    """Functions that allocate memory, which one file's budget bounds: small files cannot name one storage often."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def storage(self, data: bytes) -> Tensor:
        """Rebuild a storage, one dimension, from torch.save's bytes: five small pickles, a length, the values."""
        if type(data) is not bytes:
            raise ValueError(f"a storage of {type(data).__name__}")
        self.budget.spend_bytes(len(data))
        stream = io.BytesIO(data)
        magic, protocol, system = (load_restricted(stream, {}, self.budget) for _ in range(3))
        if magic != MAGIC or protocol != PROTOCOL or system["little_endian"] is not True:
            raise ValueError("a storage in a format that is not known")
        names = dict.fromkeys(STORAGES, refuse_call)
        dtype, count = load_restricted(stream, names, self.budget, persistent_load=storage_description)
        load_restricted(stream, {}, self.budget)
        tail = memoryview(data)[stream.tell() :]
        if len(tail) != 8 + count * dtype.itemsize or int.from_bytes(tail[:8], "little") != count:
            raise ValueError("a storage whose values are not there")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        values = bytearray(tail[8:])
        if dtype == torch.bool:
            return torch.frombuffer(values, dtype=torch.uint8) != 0
        return torch.frombuffer(values, dtype=dtype)

    def tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ) -> Tensor:
        """View a storage as a tensor. ValueError where it would reach outside or be larger than the storage."""
        numbers = (offset, *size, *stride) if type(size) is type(stride) is tuple else ("no tuple",)
        if type(storage) is not Tensor or len(size) != len(stride) or len(size) > 8 or len(rest) not in (2, 3):
            raise ValueError("a tensor of no storage, size and stride")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor whose offset, size or stride are no numbers of values")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
        if count > len(storage) or last > len(storage) - (count > 0):
            raise ValueError(f"a tensor {size} that reaches outside of its storage of {len(storage)} values")
        self.budget.spend_bytes(count * storage.itemsize)
        return storage.as_strided(size, stride, offset)

    def latin1_bytes(self, words: str, encoding: str) -> bytes:
        """Rebuild bytes as protocol 2 writes them."""
        if type(words) is not str or encoding != "latin1":
            raise ValueError("bytes that are not written as text in latin1")
        self.budget.spend_bytes(len(words))
        return words.encode("latin1")

    def text_set(self, items: list[str]) -> set[str]:
        """Rebuild a set of texts from a list."""
        if type(items) is not list:
            raise ValueError(f"a set of {type(items).__name__}")
        self.budget.spend_bytes(len(items))
        return set(map(check_text, items))


def storage_description(pid: Any) -> tuple[torch.dtype, int]:
    """Return dtype and number of values of a storage from the persistent id that stands for it."""
    match pid:
        case ("storage", Name(dotted=kind), _, _, int(count), None) if count >= 0:
            return STORAGES[kind], count
    raise ValueError("a storage that is not described as torch.save does")


def refuse_call(*_: Any) -> None:
    """Stand for the class of a storage, which is only named."""
    raise ValueError("it calls the class of a storage")


def parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    """Return the values of a parameter."""
    if type(data) is not Tensor:
        raise ValueError(f"a parameter of {type(data).__name__}")
    return data


def persistent_object(meta: dict[str, Any]) -> Record:
    """Return one of EDM's persistent objects, whose source code is ignored."""
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("state")) is not dict:
        raise ValueError("a persistent object without a state")
    return Record(check_text(meta.get("class_name")), meta["state"])


def empty_dict() -> dict[str, Any]:
    """Stand for other classes of dict, whose items come by later opcodes."""
    return {}


def module_record(name: str) -> Callable[[], Record]:
    """Return the function that stands for a class of torch.nn."""
    return lambda: Record(name)


def numpy_dtype(name: str, *_: bool) -> Record:
    """Stand for a NumPy dtype."""
    if check_text(name) not in SCALARS:
        raise ValueError(f"NumPy values of type {name[:20]!r}, allowed: {', '.join(SCALARS)}")
    return Record(f"numpy.dtype {name}")


def numpy_scalar(dtype: Record, data: bytes) -> float:
    """Return a NumPy scalar as a Python number."""
    order = ">" if dtype.state and dtype.state[1] == ">" else "<"
    name = dtype.kind.removeprefix("numpy.dtype ")
    try:
        return struct.unpack(order + SCALARS[name], data)[0]
    except struct.error:
        raise ValueError(f"a NumPy {name} of {len(data)} bytes") from None
