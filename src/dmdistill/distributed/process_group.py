"""Several processes at one piece of work, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

__all__ = ["SINGLE_PROCESS", "ProcessGroup", "is_elastic_restart", "join_process_group", "local_device"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessGroup:
    """rank: which of `world_size` processes this one is. One process exchanges nothing.

    All but `is_main` and `split` wait for the others, who must ask for the same.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None  # of the CPUs, by gloo; GPUs exchange by NCCL, in the default group

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def split(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `world_size`-th item, from the `rank`-th on."""
        return items[self.rank :: self.world_size]

    def gather(self, value: Item) -> list[Item]:
        """Each process's value, in the order of their ranks, for the first; [] for the others."""
        if self.world_size == 1:
            return [value]
        values: list[Item] | None = [value] * self.world_size if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def all_gather(self, value: Item) -> list[Item]:
        """Each process's value, in the order of their ranks, for all."""
        return self.broadcast(self.gather(value))

    def broadcast(self, value: Item) -> Item:
        """The first process's value, for all."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group)
        return values[0]

    def on_main(self, work: Callable[[], Item]) -> Item:
        """What the first process's work answers with, for all; where it ends in an error, the error."""
        if self.world_size == 1:
            return work()
        answer: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                answer = work()
            except (ValueError, OSError) as caught:
                error = caught
        answer, error = self.broadcast((answer, error))
        if error is not None:
            raise error
        return answer

    def barrier(self) -> None:
        """Until all others have come here."""
        self.all_max(0)

    def all_max(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.world_size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return int(values)

    def all_mean(self, value: Tensor) -> Tensor:
        """The mean of the processes' tensors, without a graph. A GPU is not waited for."""
        value = value.detach()
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group if value.device.type == "cpu" else None)
        return total / self.world_size


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group(device: str = "cpu") -> Iterator[ProcessGroup]:
    """All that torchrun started, or this one alone. Of several the first alone prints.

    device: of this process. ValueError for more processes on this machine than it has GPUs. Where several fail, one
    says why: the first to fail, from which the others' errors follow; they exit with code 2.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    store, rank, count = next(rendezvous("env://"))
    store = PrefixStore(f"attempt {attempt()}", store)  # torchrun's own may still hold what the dead ones wrote
    dist.init_process_group(backend(device), store=store, rank=rank, world_size=count)
    try:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))  # one may make pairs when others are done
        processes = ProcessGroup(rank, count, patient)
        with open(os.devnull, "w") as nothing, nullcontext() if processes.is_main else redirect_stdout(nothing):
            yield processes
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if not first_to_fail(store):
            raise SystemExit(2) from error
        if is_of_others(error):
            raise OSError("a process of the run is gone, and the others cannot go on without it") from error
        raise
    finally:
        dist.destroy_process_group()


def backend(device: str) -> str:
    """NCCL for what is on this process's GPU, else gloo."""
    if not device.startswith("cuda"):
        return "gloo"
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise ValueError(f"{here} processes on a machine with {gpus} GPUs: give torchrun --nproc-per-node {gpus}")
    torch.cuda.set_device(device)
    return "nccl"


def first_to_fail(store: Any) -> bool:
    """Whether no other process failed before this one; True where that cannot be known."""
    own = str(dist.get_rank())
    try:
        return store.compare_set("failed", "", own).decode() == own
    except (RuntimeError, OSError):
        return True


def is_of_others(error: Exception) -> bool:
    """Whether an error is only that another process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def local_device(name: str) -> str:
    """The GPU of this process among those of its machine, where auto or cuda is asked for; else what is asked for."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def is_elastic_restart() -> bool:
    """Whether torchrun started this process anew, after one of its processes had failed."""
    return attempt() > 0


def attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
