"""From the networks to the first step: optimizers, sharding, compilation, objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.batches import Batches, BatchSource, PairSource
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.functions import import_function, load_weight
from dmdistill.commands.distill.schedule import Objectives, PhaseSchedule
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.losses import Distance
from dmdistill.core.partition import SharedNoise, split_batch
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.models.model import Teacher
from dmdistill.training.microbatches import run_in_lockstep
from dmdistill.training.optimizer import NetworkOptimizer

__all__ = ["Distillation", "set_up"]


@dataclass(frozen=True)
class Distillation:
    """The networks of a distillation, their optimizers, and what its steps compute.

    Attributes:
        teacher: the teacher.
        generator: the generator.
        fake: the fake score.
        real: the teacher's denoiser, guided.
        optimizers: of the generator and the fake score, by the names of their updates.
        phases: the phases of the run.
        objectives: the objectives of the steps.
        batches: the data.
        parallel: how processes and microbatches share a batch.
        rng: generator of every random draw.
    """

    teacher: Teacher
    generator: Generator
    fake: Denoiser
    real: Denoiser
    optimizers: dict[str, NetworkOptimizer]
    phases: PhaseSchedule
    objectives: Objectives
    batches: Batches
    parallel: Parallelism
    rng: torch.Generator

    def iterate(self, step: int) -> dict[str, Tensor]:
        """Run one iteration of Algorithm 1. Returns its losses, averaged over microbatches and processes."""
        phases, parallel = self.phases, self.parallel
        batch = self.batches.batch(step, paired=phases.regresses(step), fake_steps=phases.fake_steps(step))
        parts, processes = parallel.microbatches, parallel.processes
        noise = SharedNoise(self.rng, parts=parts, count=parts * processes.world_size, first=parts * processes.rank)
        objective = self.objectives.at(step)
        microbatches = zip(split_batch(batch, parts), noise.parts, strict=True)
        return run_in_lockstep(
            [objective.iteration(part, part_noise) for part, part_noise in microbatches],
            self.optimizers,
            networks=(self.objectives.generator, self.objectives.fake),  # type: ignore[arg-type]
            processes=processes,
        )


def set_up(
    config: DistillConfig,
    teacher: Teacher,
    generator: Generator,
    fake: Denoiser,
    *,
    distance: Distance,
    pairs: PairSource | None,
    parallel: Parallelism,
    rng: torch.Generator,
) -> Distillation:
    """Bring networks into the form in which they train, and build their optimizers and objectives.

    Args:
        config: the options.
        teacher: the teacher, on its device, or in the host's memory where it will be sharded.
        generator: the generator, there too.
        fake: the fake score, there too.
        distance: of the regression.
        pairs: None where there is no regression.
        parallel: how processes and microbatches share a batch.
        rng: of every random draw, on the networks' device.
    """
    check_pair_count(config, pairs, parallel)
    phases = PhaseSchedule(config)
    optimizers = build_optimizers(config, phases, generator, fake, parallel)
    memory = config.memory
    if not (parallel.is_sharded or memory.lora_student or memory.lora_fake):
        teacher.cast_weights()
    parallel.shard(teacher.denoiser)
    if memory.compile:
        for denoiser in (generator.denoiser, fake, teacher.denoiser):
            denoiser.net.compile(dynamic=False)  # in place: names of weights stay
    real = teacher.guided_denoiser
    networks: Any = (parallel.wrap(generator), real, parallel.wrap(fake))
    own = None if config.method == "dmd" else import_function(config.method, "--method")(*networks)
    objectives = Objectives(
        phases,
        *networks,
        distance=distance,
        weight=load_weight(config.matching.weight),
        own=own,
    )
    batches = BatchSource(config, teacher, rng, parallel.processes, pairs)
    return Distillation(teacher, generator, fake, real, optimizers, phases, objectives, batches, parallel, rng)


def check_pair_count(config: DistillConfig, pairs: PairSource | None, parallel: Parallelism) -> None:
    """Raise a ValueError where there are fewer pairs than a batch has and they cannot be divided among processes."""
    if pairs is not None and len(pairs) < config.regression.batch_reg:
        parallel.check_divisible("the number of pairs", len(pairs))


def build_optimizers(
    config: DistillConfig, phases: PhaseSchedule, generator: Generator, fake: Denoiser, parallel: Parallelism
) -> dict[str, NetworkOptimizer]:
    """Build the optimizers. The fake score is first: once sharded it is not in memory beside the generator's EMAs."""
    options = config.optimizer
    shared: dict[str, Any] = {
        "parallel": parallel,
        "betas": options.betas,
        "weight_decay": options.weight_decay,
        "warmup": options.warmup,
        "decay": options.lr_decay,
        "clip": options.grad_clip,
    }
    fake_optimizer = NetworkOptimizer(
        fake, name="fake score", lr=config.fake_score.lr_fake, steps=phases.fake_updates, **shared
    )
    generator_optimizer = NetworkOptimizer(
        generator,
        name="generator",
        lr=options.lr,
        steps=config.steps,
        restart=phases.match_step if options.rewarm else 0,
        halflives=options.ema_halflives,
        **shared,
    )
    return {"generator": generator_optimizer, "fake": fake_optimizer}
