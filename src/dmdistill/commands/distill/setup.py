"""From the networks to the first step: optimizers, sharding, compilation, objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.commands.distill.batches import Batches, BatchSource, PairSource, RealSource
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.functions import load_divergence, load_objective, load_weight
from dmdistill.commands.distill.objectives import Networks, Objectives
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.core.denoisers import Denoiser, GuidedDenoiser
from dmdistill.core.divergences import RatioAverages
from dmdistill.core.generators import Generator
from dmdistill.core.losses import Distance
from dmdistill.core.partition import SharedNoise, split_batch
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.models.discriminator import DenoiserWithHead, HeadDiscriminator, add_head
from dmdistill.models.model import Teacher
from dmdistill.training.ema import ImplicitAlignment
from dmdistill.training.microbatches import run_in_lockstep
from dmdistill.training.optimizer import NetworkOptimizer

__all__ = ["Distillation", "guided_teacher", "set_up"]


@dataclass(frozen=True)
class Distillation:
    """The networks of a distillation, their optimizers, and what its steps compute.

    Attributes:
        teacher: the teacher.
        generator: the generator.
        fake: the fake score.
        real: the teacher's denoiser, guided.
        trained: the networks in training, wrapped for it.
        optimizers: of the networks in training, by the names of their updates.
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
    trained: list[nn.Module]
    optimizers: dict[str, NetworkOptimizer]
    phases: PhaseSchedule
    objectives: Objectives
    batches: Batches
    parallel: Parallelism
    rng: torch.Generator

    def iterate(self, step: int) -> dict[str, Tensor]:
        """Run one iteration of Algorithm 1. Returns its losses, averaged over microbatches and processes."""
        phases, parallel = self.phases, self.parallel
        batch = self.batches.batch(step, phases.batch_needs(step))
        parts, processes = parallel.microbatches, parallel.processes
        noise = SharedNoise(self.rng, parts=parts, count=parts * processes.world_size, first=parts * processes.rank)
        objective = self.objectives.at(step)
        microbatches = zip(split_batch(batch, parts), noise.parts, strict=True)
        return run_in_lockstep(
            [objective.iteration(part, part_noise) for part, part_noise in microbatches],
            self.optimizers,
            networks=self.trained,
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
    real_images: RealSource | None = None,
    parallel: Parallelism,
    rng: torch.Generator,
) -> Distillation:
    """Bring networks into the form in which they train, and build their optimizers and objectives.

    Args:
        config: the options.
        teacher: the teacher, on its device; where it will be sharded, in the host's memory or, with its weights in
            files, on the meta device.
        generator: the generator, there too.
        fake: the fake score, there too.
        distance: of the regression.
        pairs: None where there is no regression.
        real_images: None where nothing learns from real images.
        parallel: how processes and microbatches share a batch.
        rng: of every random draw, on the networks' device.
    """
    check_pair_count(config, pairs, parallel)
    phases = PhaseSchedule(config)
    offload = config.memory.offload_teacher
    if read_shards := teacher.device.type == "meta":  # the first, as a discriminator looks at features of it
        parallel.shard(teacher.denoiser, offload=offload)
    head = None
    if phases.has_gan:
        fake, head = add_discriminator(config, teacher, fake)
    optimizers = build_optimizers(config, phases, generator, fake, head, parallel)
    if config.fake_score.ida:
        optimizers["generator"].alignments.append(implicit_alignment(config, phases, generator, fake))
    memory = config.memory
    if not (parallel.is_sharded or memory.lora_student or memory.lora_fake):
        teacher.cast_weights()
    if not read_shards:
        parallel.shard(teacher.denoiser, offload=offload)
    if memory.compile:
        for denoiser in (generator.denoiser, fake, teacher.denoiser):
            denoiser.net.compile(dynamic=False)  # in place: names of weights stay
    real = guided_teacher(config, teacher)
    trained = [parallel.wrap(network) for network in (generator, fake, *([] if head is None else [head.head]))]
    objectives = build_objectives(config, phases, trained, real, head, distance, parallel)
    batches = BatchSource(config, teacher, rng, parallel.processes, pairs, real_images)
    return Distillation(teacher, generator, fake, real, trained, optimizers, phases, objectives, batches, parallel, rng)


def implicit_alignment(
    config: DistillConfig, phases: PhaseSchedule, generator: Generator, fake: Denoiser
) -> ImplicitAlignment:
    """Build what moves the fake score towards the generator, from the first update that matches distributions."""
    moved = fake.denoiser if isinstance(fake, DenoiserWithHead) else fake
    first = phases.match_step if phases.regresses(0) else 0  # without a regression the generator's first update
    return ImplicitAlignment(moved, generator.denoiser, weight=config.fake_score.ida, first=first)


def guided_teacher(config: DistillConfig, teacher: Teacher) -> Denoiser:
    """Return mu_real, with the guidance that distribution matching has."""
    options = config.matching
    scales, cap = options.real_guidance or (teacher.guidance,), options.guidance_cap
    if scales == (teacher.guidance,) and not cap:
        return teacher.guided_denoiser
    scale_range = (scales[0], scales[1]) if len(scales) == 2 else None
    return GuidedDenoiser(teacher.denoiser, sum(scales) / len(scales), scale_range=scale_range, norm_cap=cap)


def build_objectives(
    config: DistillConfig,
    phases: PhaseSchedule,
    trained: list[nn.Module],
    real: Denoiser,
    head: HeadDiscriminator | None,
    distance: Distance,
    parallel: Parallelism,
) -> Objectives:
    """Build the objectives of all steps from the networks, as they are called in training."""
    networks: Any = (trained[0], real, trained[1])
    discriminator = None
    if phases.has_gan:
        discriminator = partial(trained[1], logits=True) if head is None else replace(head, head=trained[2])
    return Objectives(
        phases,
        Networks(*networks, discriminator=discriminator, separate=head is not None),
        distance=distance,
        weight=load_weight(config.matching.weight),
        divergence=load_divergence(config.score.divergence),
        mean=parallel.processes.all_mean,
        ratios=RatioAverages(decay=config.score.ratio_ema),
        own=None if phases.method is not None else load_objective(config.method, *networks),
    )


def add_discriminator(
    config: DistillConfig, teacher: Teacher, fake: Denoiser
) -> tuple[Denoiser, HeadDiscriminator | None]:
    """Add a discriminator's head to the fake score; or return it as it is, and a head on the teacher's features."""
    options, rng = config.gan, torch.Generator(teacher.device).manual_seed(config.seed)
    inputs = teacher.move_inputs(*teacher.sample_inputs(1, rng=rng))
    kind = "mean" if config.method == "sida" else "learned"
    on_teacher = options.discriminator == "teacher"
    judge = add_head(
        teacher.denoiser if on_teacher else fake,
        *inputs,
        layers=options.discriminator_layers,
        kind=kind,
        features_from=teacher.denoiser,
    )
    if not on_teacher:
        return judge, None
    return fake, HeadDiscriminator(teacher.denoiser, judge.head, judge.layers)


def check_pair_count(config: DistillConfig, pairs: PairSource | None, parallel: Parallelism) -> None:
    """Raise a ValueError where there are fewer pairs than a batch has and they cannot be divided among processes."""
    if pairs is not None and len(pairs) < config.regression.batch_reg:
        parallel.check_divisible("the number of pairs", len(pairs))


def build_optimizers(
    config: DistillConfig,
    phases: PhaseSchedule,
    generator: Generator,
    fake: Denoiser,
    head: HeadDiscriminator | None,
    parallel: Parallelism,
) -> dict[str, NetworkOptimizer]:
    """Build the optimizers. The fake score is first: once sharded it is not in memory beside the generator's EMAs."""
    options = config.optimizer
    shared: dict[str, Any] = {
        "parallel": parallel,
        "betas": options.betas,
        "weight_decay": options.weight_decay,
        "eps": options.adam_eps,
        "warmup": options.warmup,
        "decay": options.lr_decay,
        "clip": options.grad_clip,
    }
    critic = {"lr": config.fake_score.lr_fake, "steps": phases.fake_updates, **shared}
    fake_optimizer = NetworkOptimizer(fake, name="fake score", clip_value=config.fake_score.clip_value_fake, **critic)
    separate = {}
    if head is not None:
        separate["discriminator"] = NetworkOptimizer(head.head, name="discriminator", **critic)
    generator_optimizer = NetworkOptimizer(
        generator,
        name="generator",
        lr=options.lr,
        steps=config.steps,
        restart=phases.match_step if options.rewarm else 0,
        halflives=options.ema_halflives,
        **shared,
    )
    return {"generator": generator_optimizer, "fake": fake_optimizer, **separate}
