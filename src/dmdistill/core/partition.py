"""Equal parts of a batch: the rows, and the noise, that each process and each microbatch takes of it.

Every draw is made for the full batch, as one process would draw it, and each part takes its rows. So for one seed the
numbers of processes and of gradient-accumulation steps change losses by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dmdistill.core.noise import Draw, RandomNoise
from dmdistill.core.samples import Batch, Samples

__all__ = ["PartialNoise", "SharedNoise", "select_part", "split_batch"]


def select_part(rows: Any, sizes: Sequence[int], index: int, count: int) -> Any:
    """Return the index-th of `count` equal parts of each of the groups that rows consist of, in the groups' order.

    Args:
        rows: a tensor, a list or a `Condition`; None stays None.
        sizes: of the groups, multiples of `count`.
        index: which part.
        count: how many parts there are.
    """
    if count == 1 or rows is None:
        return rows
    starts = [end - size + size // count * index for size, end in zip(sizes, accumulate(sizes), strict=True)]
    pieces = [rows[start : start + size // count] for size, start in zip(sizes, starts, strict=True) if size]
    if isinstance(rows, Tensor):
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return reduce(lambda one, other: one.concat(other), pieces)


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into `count` equal microbatches."""
    if count == 1:
        return [batch]
    size = len(batch.z)
    fake = [size] * (len(batch.z_fake) // size) if batch.z_fake is not None else []
    paired = [len(batch.z_ref)] if batch.z_ref is not None else []
    groups = {"z": [size], "cond": [size], "z_fake": fake, "cond_fake": fake}
    groups |= dict.fromkeys(("z_ref", "y_ref", "cond_ref"), paired)
    groups |= dict.fromkeys(("real", "cond_real"), [size] * (len(batch.real) // size) if batch.real is not None else [])
    return [
        replace(
            batch, **{name: select_part(getattr(batch, name), sizes, part, count) for name, sizes in groups.items()}
        )
        for part in range(count)
    ]


class SharedNoise:
    """The noise of a full batch, drawn once for all the parts that one process takes of it.

    Args:
        rng: of the draws, in the same state in every process.
        parts: how many parts this process takes. count: how many there are in all processes.
        first: the index of this process's first part.
    """

    def __init__(self, rng: torch.Generator, *, parts: int = 1, count: int = 1, first: int = 0) -> None:
        self.noise, self.count = RandomNoise(rng), count
        self.draws: dict[int, list[Any]] = {}  # by number: the rows, and how many parts still need them
        self.parts = [PartialNoise(self, first + part) for part in range(parts)]

    def draw(self, number: int, samples: Samples, draw: Draw) -> Tensor:
        """Return the rows of the full batch of the draw of this number."""
        if number not in self.draws:
            fresh, paired = samples.fresh * self.count, samples.paired * self.count
            shape = samples.x.new_empty(()).expand(fresh + paired, *samples.x.shape[1:])
            self.draws[number] = [self.noise.draw(Samples(shape, None, fresh, paired), draw), len(self.parts)]
        entry = self.draws[number]
        entry[1] -= 1
        if entry[1] == 0:
            del self.draws[number]
        return entry[0]


class PartialNoise:
    """A `NoiseSource` that returns one part's rows of a shared draw."""

    def __init__(self, shared: SharedNoise, index: int) -> None:
        self.shared, self.index, self.number = shared, index, 0

    def draw(self, samples: Samples, draw: Draw) -> Tensor:
        """Draw one row per sample of this part."""
        rows = self.shared.draw(self.number, samples, draw)
        self.number += 1
        count = self.shared.count
        return select_part(rows, [samples.fresh * count, samples.paired * count], self.index, count)
