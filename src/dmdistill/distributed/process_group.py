"""Processes that work together, as torchrun starts them."""

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

__all__ = [
    "SINGLE_PROCESS",
    "ProcessGroup",
    "is_connection_error",
    "is_elastic_restart",
    "join_process_group",
    "local_device",
]

Item = TypeVar("Item")
# of a process; a signal that ends training is none
FAILURES = (ValueError, OSError, ArithmeticError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class ProcessGroup:
    """Collective operations among processes; a single process exchanges nothing.

    Every method but `split` waits for the other processes, all of which must call it.

    Args:
        rank: index of this process.
        world_size: number of processes.
        group: gloo group for values on CPUs; values on GPUs are exchanged in the default group, by NCCL.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def split(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's share of a sequence: every `world_size`-th item, from index `rank` on."""
        return items[self.rank :: self.world_size]

    def gather(self, value: Item) -> list[Item]:
        """Return each process's value, by rank, on rank 0; [] on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Item] | None = [value] * self.world_size if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def all_gather(self, value: Item) -> list[Item]:
        """Return each process's value, by rank, on every process."""
        return self.broadcast(self.gather(value))

    def broadcast(self, value: Item) -> Item:
        """Return rank 0's value on every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group)
        return values[0]

    def on_main(self, function: Callable[[], Item]) -> Item:
        """Call a function on rank 0; return its result, or raise its ValueError or OSError, on every process."""
        if self.world_size == 1:
            return function()
        result: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = function()
            except (ValueError, OSError) as caught:
                error = caught
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.all_max(0)

    def all_max(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.world_size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return int(values)

    def all_mean(self, value: Tensor) -> Tensor:
        """Return the mean of the processes' tensors, detached, without waiting for a GPU."""
        value = value.detach()
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group if value.device.type == "cpu" else None)
        return total / self.world_size


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group(device: str = "cpu") -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started; yield `SINGLE_PROCESS` without torchrun. Only rank 0 prints.

    ValueError for more processes on a host than it has GPUs. If several processes fail, only the first to fail
    reports its error, from which those of the others follow; the others exit with code 2.

    Args:
        device: name of this process's device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"attempt {restart_count()}", store)  # torchrun's may still hold keys of dead processes
    dist.init_process_group(choose_backend(device), store=store, rank=rank, world_size=world_size)
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))  # rank 0 may work while the others wait
        processes = ProcessGroup(rank, world_size, group)
        with open(os.devnull, "w") as devnull, nullcontext() if processes.is_main else redirect_stdout(devnull):
            yield processes
    except FAILURES as error:
        if not is_first_failure(store):
            raise SystemExit(2) from error
        if is_connection_error(error):
            raise OSError("a process of the run is gone, and the others cannot continue without it") from error
        raise
    finally:
        dist.destroy_process_group()


def choose_backend(device: str) -> str:
    """Choose the default group's backend: NCCL if this process has a GPU, which becomes its current one, else gloo."""
    if not device.startswith("cuda"):
        return "gloo"
    local_size, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if local_size > gpus:
        raise ValueError(f"{local_size} processes on a host with {gpus} GPUs: give torchrun --nproc-per-node {gpus}")
    torch.cuda.set_device(device)
    return "nccl"


def is_first_failure(store: Any) -> bool:
    """Whether no other process failed before this one; True if that cannot be known."""
    own = str(dist.get_rank())
    try:
        return store.compare_set("failed", "", own).decode() == own
    except (RuntimeError, OSError):
        return True


def is_connection_error(error: BaseException) -> bool:
    """Whether an error only says that another process no longer responds."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def local_device(name: str) -> str:
    """Return the name of this process's GPU for "auto" and "cuda" under torchrun; any other name as it is."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def is_elastic_restart() -> bool:
    """Whether torchrun restarted this process after one of its processes had failed."""
    return restart_count() > 0


def restart_count() -> int:
    """Return how often torchrun has restarted this process."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
