"""Network evaluations of a distillation, by which its variants are given the same compute."""

from __future__ import annotations

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change

__all__ = ["evaluations_per_step", "match_compute"]


def match_compute(variant: DistillConfig, full: DistillConfig) -> DistillConfig:
    """Set the variant's steps so that it takes as many network evaluations as the full objective."""
    steps = max(1, round(full.steps * evaluations_per_step(full) / evaluations_per_step(variant)))
    return change(variant, steps=steps, evaluate_every=steps, sample_every=steps)


def evaluations_per_step(config: DistillConfig) -> int:
    """Count the network evaluations of one generator update: 1 per image forward, 2 more per image backward."""
    guided = config.ode.guidance not in (None, 1)
    regression = 3 * config.regression.batch_reg if config.regression.lambda_reg else 0
    if not config.matching.match:
        return regression
    generator, real, fake = 3, 2 if guided else 1, 1
    fake_updates = 3 + 4 * (config.fake_score.fake_steps - 1)  # each further fake-score update generates its own images
    return config.batch * (generator + real + fake + fake_updates) + regression
