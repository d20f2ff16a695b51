"""Memory, by what tensors are for, and floating-point operations of any computation.

Both are counted where operations are dispatched, with tensors that have data or only shapes: a step of networks that
fit nowhere can be counted on a laptop. Not counted: the workspace of kernels, the spare memory of an allocator, and
operations other than matrix products, convolutions and attention.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["FakeTensors", "Ledger", "find_tensors", "shard_bytes"]

Module = TypeVar("Module", bound=nn.Module)

NEW, OLD = "activations", "other networks"  # tensors without a name: allocated meanwhile, or there before


class FakeTensors(FakeTensorMode):
    """Mode in which tensors have shapes and no data, and nothing is computed; of real tensors only shapes are used."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.empty: dict[int, tuple[Tensor, weakref.ref[Tensor]]] = {}  # meta tensors, and their fake tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # tensors know their mode: a copied network stays in this one

    def copy_network(self, module: Module) -> Module:
        """Copy a network without its data. One on the meta device becomes one of the CPU."""
        tensors = [*module.parameters(), *module.buffers()]
        return copy.deepcopy(module, {id(tensor): self.fake_tensor(tensor) for tensor in tensors})

    def fake_tensor(self, tensor: Tensor) -> Tensor:
        """Return the fake tensor of a tensor."""
        if tensor.device.type != "meta":
            return self.from_tensor(tensor)
        _, known = self.empty.get(id(tensor), (None, None))
        like = known() if known else None  # weights that networks share stay shared while one of them has them
        if like is None:
            with self:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                like = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            self.empty[id(tensor)] = tensor, weakref.ref(like)
        return like


class Ledger(TorchDispatchMode):
    """Mode that counts the bytes of all living tensors, each storage once, by what they are for, and the operations.

    Enter it after `FakeTensors`. In it a number read from a fake tensor is 1, or 0 for integers, and a truth value is
    True: all is finite, all labels are in range.

    Attributes:
        now: bytes by part.
        peak: bytes by part where their sum was largest since `reset_peak`.
        flops: operations since then; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.flops = 0
        self.storages: dict[int, tuple[str, int]] = {}  # of each storage, its part and bytes

    def name(self, part: str, tensors: Iterable[Tensor], *, world_size: int = 1) -> None:
        """Name the part that tensors belong to; of tensors sharded among processes the first one's shards count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.track(storage, part)
            self.assign(id(storage), part, storage.nbytes() if world_size == 1 else shard_bytes(tensor, world_size))

    def label_shared(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Name the part of tensors that lie in memory which is counted already."""
        for tensor in tensors:
            self.assign(id(tensor.untyped_storage()), part, 0)

    def assign(self, key: int, part: str, size: int) -> None:
        """Count a storage under a part."""
        before, old_size = self.storages.get(key, (part, 0))
        self.now[before] -= old_size
        self.now[part] += size
        self.storages[key] = part, size

    def add_bytes(self, part: str, size: int) -> None:
        """Count bytes, or fewer bytes, that belong to no tensor of this process."""
        self.now[part] += size
        self.update_peak()

    def update_peak(self) -> None:
        """Note the present bytes where they are the most so far."""
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)

    def reset_peak(self) -> None:
        """Start a new count of the peak and of operations."""
        self.peak, self.flops = Counter(self.now), 0

    def track(self, storage: torch.UntypedStorage, part: str) -> None:
        """Count a storage for as long as it lives."""
        if id(storage) in self.storages:  # a storage is one object in Python for as long as it lives
            return
        self.assign(id(storage), part, storage.nbytes())
        weakref.finalize(storage, self.forget, id(storage)).atexit = False

    def forget(self, key: int) -> None:
        """Stop counting a storage."""
        part, size = self.storages.pop(key)
        self.now[part] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else args[0].dtype == torch.bool
        self.track_all((args, kwargs), OLD)
        answer = func(*args, **(kwargs or {}))
        self.track_all(answer, NEW)
        self.update_peak()
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=answer)
        return answer

    def track_all(self, tree: Any, part: str) -> None:
        """Count the storages of all tensors in a tree."""
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                self.track(leaf.untyped_storage(), part)


def shard_bytes(tensor: Tensor, world_size: int) -> int:
    """Return the bytes of the first process's shard of a tensor; no other process has a larger one.

    FSDP2 pads the other shards of a weight to the same size. A scalar is replicated.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    return -(-rows // world_size) * (tensor.numel() // max(rows, 1)) * tensor.itemsize


def find_tensors(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors in a dataclass, such as a condition, in a dict or a sequence, at any depth."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        yield from find_tensors(list(thing.values()))
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from find_tensors(one)
    elif dataclasses.is_dataclass(thing):
        yield from find_tensors([getattr(thing, field.name) for field in dataclasses.fields(thing)])
