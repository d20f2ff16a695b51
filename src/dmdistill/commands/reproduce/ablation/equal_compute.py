"""Operations of a distillation, by which its variants are given the same compute."""

from __future__ import annotations

from functools import cache

import torch

from dmdistill.commands.distill.command import load_configured_teacher
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.plan.dry_run import dry_run
from dmdistill.core.solvers import evaluations

__all__ = ["count_operations", "match_compute"]


def match_compute(variant: DistillConfig, operations: float) -> DistillConfig:
    """Set the variant's steps so that its training takes as many operations.

    Args:
        variant: options of a distillation without pairs of its own.
        operations: see `count_operations`.
    """
    steps = max(1, round(variant.steps * operations / count_operations(variant)))
    return change(variant, steps=steps, evaluate_every=steps, sample_every=steps)


@cache
def count_operations(config: DistillConfig, *, pairs: bool = False) -> float:
    """Count the operations of a distillation's training (products, convolutions, attention) without computing it.

    Args:
        config: options of the distillation.
        pairs: count the making of its pairs too.
    """
    teacher = load_configured_teacher(config)
    with dry_run(config, teacher, device=torch.device("cpu"), precision=None, data=False) as run:
        operations = sum(phase.steps * run.count(phase).flops for phase in run.distillation.phases.phases)
        if pairs:
            evaluation = run.count_sampling().flops / run.sampling_batch
            operations += config.pair_set.pair_count * evaluations(teacher.solver, teacher.steps) * evaluation
    return operations
