"""The data of a distillation's steps. All processes draw for the full batch, and each takes its part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.core.denoisers import Condition
from dmdistill.core.partition import select_part
from dmdistill.core.samples import Batch
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.models.model import Teacher

__all__ = ["BatchSource", "Batches", "PairSource"]


class PairSource(Protocol):
    """Noise-image pairs: a `PairDataset`."""

    def __len__(self) -> int:
        """Count the pairs."""
        ...

    def rows(self, step: int, size: int) -> list[int]:
        """Return the numbers of the pairs of a step's batch."""
        ...

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return noise, images, and the numbers of their conditions."""
        ...


class Batches(Protocol):
    """The data of the steps: a `BatchSource`."""

    def batch(self, step: int, *, paired: bool, fake_steps: int) -> Batch:
        """Draw a step's batch."""
        ...

    def with_sizes(self, config: DistillConfig) -> Batches:
        """Return batches of the sizes of another configuration."""
        ...


@dataclass(frozen=True)
class BatchSource:
    """Draws this process's part of each batch.

    Attributes:
        config: the sizes of batches. teacher: its shapes and conditions.
        rng: of noise and conditions, on the device of the networks.
        processes: that share a batch. pairs: None where there is no regression.
    """

    config: DistillConfig
    teacher: Teacher
    rng: torch.Generator
    processes: ProcessGroup
    pairs: PairSource | None

    def batch(self, step: int, *, paired: bool, fake_steps: int) -> Batch:
        """Draw a step's batch.

        Args:
            step: its number, which decides the pairs.
            paired: whether it has pairs.
            fake_steps: updates of the fake score; those after the first get fresh noise.
        """
        z, cond = self.noise(1)
        z_ref = y_ref = cond_ref = z_fake = cond_fake = None
        if paired and self.pairs is not None:
            z_ref, y_ref, cond_ref = self.paired(self.pairs, step)
        if fake_steps > 1:
            z_fake, cond_fake = self.noise(fake_steps - 1)
        return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake)

    def with_sizes(self, config: DistillConfig) -> BatchSource:
        """Return batches of the sizes of another configuration."""
        return replace(self, config=config)

    def noise(self, batches: int) -> tuple[Tensor, Condition | None]:
        """Draw noise and conditions of several batches."""
        sizes = batches * [self.config.batch]
        drawn = self.teacher.sample_noise(sum(sizes), rng=self.rng)
        z, index = (select_part(rows, sizes, self.processes.rank, self.processes.world_size) for rows in drawn)
        return z, self.teacher.condition(index)

    def paired(self, pairs: PairSource, step: int) -> tuple[Tensor, Tensor, Condition | None]:
        """Read a step's noise-image pairs and their conditions."""
        rows = pairs.rows(step, self.config.regression.batch_reg)
        z_ref, y_ref, index = pairs[select_part(rows, [len(rows)], self.processes.rank, self.processes.world_size)]
        device = self.rng.device
        return z_ref.to(device), y_ref.to(device), self.teacher.condition(index)
