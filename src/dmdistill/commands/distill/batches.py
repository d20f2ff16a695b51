"""The data of a distillation's steps. All processes draw for the full batch, and each takes its part."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import BatchNeeds
from dmdistill.core.denoisers import Condition
from dmdistill.core.partition import select_part
from dmdistill.core.samples import Batch, Samples
from dmdistill.data.conditions import Conditions
from dmdistill.data.seeds import derive_seed
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.models.model import Teacher

__all__ = ["BatchSource", "Batches", "PairSource", "RealSource"]


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


class RealSource(Protocol):
    """Real images: a `RealImages`."""

    @property
    def conditions(self) -> Conditions | None:
        """What they can be conditioned on."""
        ...

    def __len__(self) -> int:
        """Count the images."""
        ...

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images by their numbers, and the numbers of their conditions."""
        ...


class Batches(Protocol):
    """The data of the steps: a `BatchSource`."""

    def batch(self, step: int, needs: BatchNeeds) -> Batch:
        """Draw a step's batch."""
        ...

    def reference_images(self, count: int) -> Samples | None:
        """Return images of the data, the same every time."""
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
        real: real images; None where nothing needs them.
    """

    config: DistillConfig
    teacher: Teacher
    rng: torch.Generator
    processes: ProcessGroup
    pairs: PairSource | None
    real: RealSource | None = None

    def batch(self, step: int, needs: BatchNeeds) -> Batch:
        """Draw a step's batch.

        Args:
            step: its number, which decides the pairs and which of its steps a few-step student learns.
            needs: what it holds beside noise for the generator.
        """
        z, cond = self.noise(1)
        z_ref = y_ref = cond_ref = z_fake = cond_fake = real = cond_real = None
        if needs.paired and self.pairs is not None:
            z_ref, y_ref, cond_ref = self.paired(self.pairs, step)
        if needs.fresh:
            z_fake, cond_fake = self.noise(needs.fresh)
        if needs.real and self.real is not None:
            real, cond_real = self.real_images(self.real, needs.real)
            cond_fake = cond_real if needs.same_conditions else cond_fake
        steps = self.student_steps(step, 1 + needs.fresh)
        return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake, real, cond_real, steps)

    def reference_images(self, count: int) -> Samples | None:
        """Return images to compare the student's with, the same every time: real ones, or those of pairs.

        Args:
            count: how many; fewer where there are not so many. None is returned where there is no such data.
        """
        rng = torch.Generator().manual_seed(self.config.seed)
        source = self.real if self.real is not None else self.pairs
        if source is None:
            return None
        rows = torch.randperm(len(source), generator=rng)[:count]
        if self.real is not None:
            return Samples(*self.select_real(self.real, rows), len(rows))
        assert self.pairs is not None
        _, y, index = self.pairs[rows.tolist()]
        return Samples(y.to(self.rng.device), self.teacher.condition(index), len(y))

    def with_sizes(self, config: DistillConfig) -> BatchSource:
        """Return batches of the sizes of another configuration."""
        return replace(self, config=config)

    def noise(self, batches: int) -> tuple[Tensor, Condition | None]:
        """Draw noise and conditions of several batches."""
        sizes = batches * [self.config.batch]
        drawn = self.teacher.sample_noise(sum(sizes), rng=self.rng)
        z, index = (select_part(rows, sizes, self.processes.rank, self.processes.world_size) for rows in drawn)
        return z, self.teacher.condition(index)

    def student_steps(self, step: int, groups: int) -> tuple[int, ...]:
        """Draw the student's step of each group of noise, the same in all processes; none for a one-step student."""
        count = self.config.student.step_count
        rng = random.Random(derive_seed(self.config.seed, step))
        return tuple(rng.randrange(count) for _ in range(groups)) if count > 1 else ()

    def real_images(self, real: RealSource, batches: int) -> tuple[Tensor, Condition | None]:
        """Draw real images and their conditions, of several batches, with replacement."""
        sizes, rng = batches * [self.config.batch], self.rng
        rows = torch.randint(len(real), (sum(sizes),), generator=rng, device=rng.device)
        return self.select_real(real, select_part(rows, sizes, self.processes.rank, self.processes.world_size))

    def select_real(self, real: RealSource, rows: Tensor) -> tuple[Tensor, Condition | None]:
        """Read real images and their conditions by their numbers."""
        x, index = real[rows.cpu()]
        if real.conditions is None or index is None:
            return x.to(self.rng.device), None
        return x.to(self.rng.device), real.conditions.select(index).to(self.rng.device)

    def paired(self, pairs: PairSource, step: int) -> tuple[Tensor, Tensor, Condition | None]:
        """Read a step's noise-image pairs and their conditions."""
        rows = pairs.rows(step, self.config.regression.batch_reg)
        z_ref, y_ref, index = pairs[select_part(rows, [len(rows)], self.processes.rank, self.processes.world_size)]
        device = self.rng.device
        return z_ref.to(device), y_ref.to(device), self.teacher.condition(index)
