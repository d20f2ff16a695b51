"""Several processes at one piece of work, as torchrun starts them. They exchange tensors of the CPU, by gloo."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["Processes", "join_processes", "own_device"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """rank: which of `count` processes this one is. One process exchanges nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item, from the `rank`-th on."""
        return items[self.rank :: self.count]

    def gathered(self, value: Item) -> list[Item]:
        """Each process's value, in the order of their ranks, for the first; [] for the others."""
        if self.count == 1:
            return [value]
        values: list[Item] | None = [value] * self.count if self.first else None
        dist.gather_object(value, values)
        return values or []

    def told(self, value: Item) -> Item:
        """The first process's value, for all."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join_processes() -> Iterator[Processes]:
    """All that torchrun started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """The GPU of this process among those of its machine, where auto or cuda is asked for; else what is asked for."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"
