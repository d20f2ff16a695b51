"""Published methods as objectives: each a few terms and critics."""

from __future__ import annotations

from torch import nn

from dmdistill.core.critics import FakeScore
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import OneStep
from dmdistill.core.losses import Distance, Weight, pseudo_huber, weight_eq8
from dmdistill.core.objective import Objective
from dmdistill.core.terms import DistributionMatching, Regression, Term

__all__ = ["dmd", "regression"]


def dmd(
    generator: nn.Module,
    real: Denoiser,
    fake: Denoiser,
    *,
    distance: Distance = pseudo_huber,
    lambda_reg: float = 0.25,
    match_pairs: bool = False,
    weight: Weight = weight_eq8,
    low: float = 0.02,
    high: float = 0.98,
) -> Objective:
    """Build the objective of DMD (Yin et al., CVPR 2024), with the updates "generator" and "fake".

    Args:
        generator: G.
        real: mu_real, frozen, guided where wanted.
        fake: mu_fake, never guided.
        distance: of the regression loss, per sample.
        lambda_reg: its weight; 0 needs no pairs.
        match_pairs: the images of the pairs' noise are matched and learned from too, as in the paper's LAION runs.
        weight: of the distribution-matching gradient, Eq. 8 by default.
        low: lower end of the times that Eq. 7 draws, as a fraction of the range.
        high: upper end of these times.
    """
    rows = "all" if match_pairs else "fresh"
    matching = DistributionMatching(real, fake, low=low, high=high, weight=weight, rows=rows)
    pairs = {Regression(distance): lambda_reg} if lambda_reg > 0 else {}
    sampler = OneStep(generator, "all" if pairs else "fresh")
    return Objective(sampler, {matching: 1.0, **pairs}, {"fake": {FakeScore(fake, rows=rows): 1.0}})


def regression(
    generator: nn.Module, *, distance: Distance = pseudo_huber, lambda_reg: float = 1.0, fake: Denoiser | None = None
) -> Objective:
    """Build the regression on its own, as a phase before distribution matching.

    Args:
        generator: G.
        distance: of the regression loss, per sample.
        lambda_reg: its weight.
        fake: mu_fake, where it learns the images of the pairs' noise meanwhile; None where it does not.
    """
    critics: dict[str, dict[Term, float]] = {} if fake is None else {"fake": {FakeScore(fake, rows="paired"): 1.0}}
    return Objective(OneStep(generator, "paired"), {Regression(distance): lambda_reg}, critics)
