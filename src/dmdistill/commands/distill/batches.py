"""What the steps of a distillation consume. All draw for the whole batch, and each process takes its portion."""

from __future__ import annotations

from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.run_folder import RunFolder
from dmdistill.core.denoisers import Condition
from dmdistill.core.samples import Batch
from dmdistill.data.pairs import PairDataset
from dmdistill.models.model import Teacher
from dmdistill.training.microbatches import portion

__all__ = ["batch_of"]


def batch_of(
    config: DistillConfig, teacher: Teacher, run: RunFolder, step: int, *, pairs: PairDataset | None, fresh: int
) -> Batch:
    """This process's portion of a step's batch.

    pairs: to regress on, None for none. fresh: batches of images, besides those of the generator's update, for further
    updates of the fake score.
    """
    z, cond = noise(config, teacher, run)
    z_ref = y_ref = cond_ref = z_fake = cond_fake = None
    if pairs is not None:
        z_ref, y_ref, index = some_pairs(config, run, pairs, step)
        z_ref, y_ref, cond_ref = z_ref.to(run.device), y_ref.to(run.device), teacher.condition(index)
    if fresh:
        z_fake, cond_fake = noise(config, teacher, run, batches=fresh)
    return Batch(z, cond, z_ref, y_ref, cond_ref, z_fake, cond_fake)


def noise(
    config: DistillConfig, teacher: Teacher, run: RunFolder, *, batches: int = 1
) -> tuple[Tensor, Condition | None]:
    """Noise and conditions of so many batches, of each this process's portion."""
    sizes = batches * [config.batch]
    drawn = teacher.sample_noise(sum(sizes), rng=run.rng)
    z, index = (portion(one, sizes, run.processes.rank, run.processes.world_size) for one in drawn)
    return z, teacher.condition(index)


def some_pairs(
    config: DistillConfig, run: RunFolder, pairs: PairDataset, step: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """z, x and the conditions' numbers."""
    rank, count = run.processes.rank, run.processes.world_size
    if count == 1:
        return pairs.batch(step, config.batch_reg)
    rows = pairs.rows(step, config.batch_reg)
    return pairs[portion(rows, [len(rows)], rank, count)]
