"""What a piece of work takes: memory, tensor by tensor, by what they are for, and floating-point operations.

Both are counted where operations are dispatched, so that tensors without data do as well as real ones: a step of
networks that fit nowhere can be counted on a laptop. Not counted: the workspace of kernels, and what an allocator keeps
spare; and operations but those of matrix products, convolutions and attention.
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

MADE, FOUND = "activations", "other networks"  # what nobody named: made meanwhile, or there before


class FakeTensors(FakeTensorMode):
    """Inside, tensors have shapes and no data, and nothing is computed; real tensors are taken by their shapes."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.empty: dict[int, tuple[Tensor, weakref.ref[Tensor]]] = {}  # on the meta device, and what stands for it

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # tensors know their mode: a copied network stays in this one

    def copy_network(self, module: Module) -> Module:
        """A copy of a network, without its data. One on the meta device, where none ever was, is taken as the CPU's."""
        tensors = [*module.parameters(), *module.buffers()]
        return copy.deepcopy(module, {id(tensor): self.fake_tensor(tensor) for tensor in tensors})

    def fake_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor, without its data."""
        if tensor.device.type != "meta":
            return self.from_tensor(tensor)
        _, known = self.empty.get(id(tensor), (None, None))
        like = known() if known else None  # what networks share stays shared, for as long as one of them has it
        if like is None:
            with self:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                like = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            self.empty[id(tensor)] = tensor, weakref.ref(like)
        return like


class Ledger(TorchDispatchMode):
    """Keeps the bytes of all tensors alive, each storage once, by what they are for, and the operations made.

    It is entered after `WithoutData`. Of tensors without data every number asked for is 1, or 0 for integers, and every
    question is answered with yes: all is finite, all labels are in range.

    Attributes:
        now: bytes by part. peak: the same where their sum was largest since `restart`.
        flops: since then; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.flops = 0
        self.storages: dict[int, tuple[str, int]] = {}  # of each storage, its part and bytes

    def name(self, part: str, tensors: Iterable[Tensor], *, world_size: int = 1) -> None:
        """Say what tensors are for, and among how many processes they are divided, of which this is the first."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.track(storage, part)
            self.assign(id(storage), part, storage.nbytes() if world_size == 1 else shard_bytes(tensor, world_size))

    def label_shared(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Say that tensors lie in what is held for a part already."""
        for tensor in tensors:
            self.assign(id(tensor.untyped_storage()), part, 0)

    def assign(self, key: int, part: str, size: int) -> None:
        before, storages = self.storages.get(key, (part, 0))
        self.now[before] -= storages
        self.now[part] += size
        self.storages[key] = part, size

    def add_bytes(self, part: str, size: int) -> None:
        """So many bytes more, or less, that are no tensor seen here."""
        self.now[part] += size
        self.update_peak()

    def update_peak(self) -> None:
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)

    def reset_peak(self) -> None:
        """Begin anew."""
        self.peak, self.flops = Counter(self.now), 0

    def track(self, storage: torch.UntypedStorage, part: str) -> None:
        if id(storage) in self.storages:  # a storage is one object in Python for as long as it lives
            return
        self.assign(id(storage), part, storage.nbytes())
        weakref.finalize(storage, self.forget, id(storage)).atexit = False

    def forget(self, key: int) -> None:
        part, size = self.storages.pop(key)
        self.now[part] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else args[0].dtype == torch.bool
        self.track_all((args, kwargs), FOUND)
        answer = func(*args, **(kwargs or {}))
        self.track_all(answer, MADE)
        self.update_peak()
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=answer)
        return answer

    def track_all(self, tree: Any, part: str) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                self.track(leaf.untyped_storage(), part)


def shard_bytes(tensor: Tensor, world_size: int) -> int:
    """Bytes that the first of so many processes keeps of a tensor whose rows are divided; no other one keeps more.

    FSDP2 pads the others' shares of a weight to as many. A number is kept by all.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    return -(-rows // world_size) * (tensor.numel() // max(rows, 1)) * tensor.itemsize


def find_tensors(thing: Any) -> Iterator[Tensor]:
    """The tensors in a dataclass, a condition say, in a dict or a sequence, at any depth."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        yield from find_tensors(list(thing.values()))
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from find_tensors(one)
    elif dataclasses.is_dataclass(thing):
        yield from find_tensors([getattr(thing, field.name) for field in dataclasses.fields(thing)])
