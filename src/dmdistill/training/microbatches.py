"""Algorithm 1 where a batch is divided among processes and taken in parts: the same draws, the same updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.core.dmd import DMD, NonFiniteError
from dmdistill.core.objective import Update
from dmdistill.core.samples import Batch
from dmdistill.distributed.data_parallel import Parallelism, accumulating

__all__ = ["InParts", "portion", "split"]


class InParts(DMD):
    """`DMD` for one process's portion of a batch, which is taken in parts: one update of each network for all of them.

    Every draw is of the whole batch, as one process alone would draw it, and each part takes its rows. So for one seed
    the number of processes and parts changes losses by rounding alone.

    Args:
        parallel: how the batch is divided. The others: as in `DMD`; generator and fake as `Parallel.called` has them.
    """

    def __init__(self, *networks: Any, parallel: Parallelism, **settings: Any) -> None:
        super().__init__(*networks, **settings)
        self.parallel = parallel
        self.part = 0  # the one in hand
        self.sizes: list[int] = []  # of the groups of samples in a part: of z, of z_ref
        self.drawn: tuple[Tensor, ...] = ()  # times and noise of the whole batch

    def step(self, batch: Batch, update_generator: Update, update_fake: Update) -> dict[str, Tensor]:
        """One iteration for this process's portion of a batch; the losses are those of the whole batch."""
        parts = split(batch, self.parallel.microbatches)
        found: dict[str, list[Tensor]] = {}
        streams = []
        self.sizes = self.groups(parts[0])
        for self.part, part in enumerate(parts):
            with accumulating(self.generator, last=part is parts[-1]):
                x, cond, losses = self.generator_losses(part)
                update_generator(self.total(losses))
            note(found, losses)
            streams.append(self.fake_batches(x, cond, part))
        for update, images in enumerate(zip(*streams, strict=True)):
            self.sizes = self.sizes if update == 0 else [len(parts[0].z)]
            found.pop("loss_fake", None)
            for self.part, (x, cond) in enumerate(images):
                with accumulating(self.fake, last=self.part == len(images) - 1):
                    loss = self.fake_loss(x, cond)
                    update_fake(loss)
                note(found, {"loss_fake": loss})
        means = self.parallel.processes.all_mean(torch.stack([torch.stack(parts).mean() for parts in found.values()]))
        return dict(zip(found, means, strict=True))

    def groups(self, part: Batch) -> list[int]:
        """How many samples `generate` makes of z and how many of z_ref."""
        if part.z_ref is None or (self.match and not self.match_pairs):
            return [len(part.z)]
        return [len(part.z), len(part.z_ref)] if self.match else [len(part.z_ref)]

    def draw(self, x: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
        """The rows of this part, of what one process would draw for the whole batch."""
        processes, parts = self.parallel.processes, self.parallel.microbatches
        count = processes.world_size * parts
        if self.part == 0:
            whole = x.new_empty(()).expand(len(x) * count, *x.shape[1:])
            self.drawn = super().draw(whole, low, high)
        sizes = [size * count for size in self.sizes]
        t, eps = (portion(one, sizes, processes.rank * parts + self.part, count) for one in self.drawn)
        return t, eps

    def check(self, name: str, loss: Tensor, x: Tensor, t: Tensor, eps: Tensor, cond: Condition | None) -> None:
        self.together(loss, lambda mean: super(InParts, self).check(name, mean, x, t, eps, cond))

    def check_pairs(self, loss: Tensor, x_ref: Tensor, y_ref: Tensor) -> None:
        self.together(loss, lambda mean: super(InParts, self).check_pairs(mean, x_ref, y_ref))

    def together(self, loss: Tensor, check: Callable[[Tensor], None]) -> None:
        """A check that all processes fail where one does, by what that one says."""
        if not self.careful:
            return
        processes = self.parallel.processes
        try:
            check(processes.all_mean(loss))
        except NonFiniteError as error:
            good = bool(torch.isfinite(loss))
            said = [(ok, rank, text) for rank, (ok, text) in enumerate(processes.all_gather((good, str(error))))]
            _, rank, text = min(said)
            raise NonFiniteError(f"{text} (process {rank})" if processes.world_size > 1 else text) from None


def note(found: dict[str, list[Tensor]], losses: dict[str, Tensor]) -> None:
    for name, loss in losses.items():
        found.setdefault(name, []).append(loss.detach())


def split(batch: Batch, count: int) -> list[Batch]:
    """`count` equal parts of a batch."""
    if count == 1:
        return [batch]
    size = len(batch.z)
    of_pairs = [len(batch.z_ref)] if batch.z_ref is not None else []
    of_fake = [size] * (len(batch.z_fake) // size) if batch.z_fake is not None else []
    sizes = {"z": [size], "cond": [size], "z_fake": of_fake, "cond_fake": of_fake}
    sizes |= dict.fromkeys(("z_ref", "y_ref", "cond_ref"), of_pairs)
    named = [(one.name, getattr(batch, one.name)) for one in fields(Batch)]
    return [Batch(**{name: portion(whole, sizes[name], part, count) for name, whole in named}) for part in range(count)]


def portion(whole: Any, sizes: Sequence[int], index: int, count: int) -> Any:
    """The index-th of `count` equal portions of each of the groups that a whole consists of, in the groups' order.

    whole: a tensor, a list or a `Condition`; None stays None. sizes: of the groups, which are multiples of `count`.
    """
    if count == 1 or whole is None:
        return whole
    ends = accumulate(sizes)
    starts = [end - size + size // count * index for size, end in zip(sizes, ends, strict=True)]
    rows = [slice(start, start + size // count) for size, start in zip(sizes, starts, strict=True)]
    return joined(whole[one] for one in rows)


def joined(pieces: Iterable[Any]) -> Any:
    """Pieces of one kind, one after the other."""
    first, *rest = pieces
    if not rest:
        return first
    if isinstance(first, Tensor):
        return torch.cat([first, *rest])
    return reduce(append, rest, first)


def append(one: Condition, other: Condition) -> Condition:
    return one.concat(other)
