"""Published methods as objectives: each a few terms and critics.

Every function takes G, mu_real (frozen, guided where wanted) and mu_fake (never guided), and returns the objective,
whose updates are "generator" and "fake".
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dmdistill.core.critics import Augment, DiscriminatorLoss, FakeScore
from dmdistill.core.denoisers import Denoiser, GuidedDenoiser
from dmdistill.core.divergences import Discriminator
from dmdistill.core.generators import OneStep
from dmdistill.core.losses import Distance, Weight, pseudo_huber, weight_eq8
from dmdistill.core.objective import Objective, Sampler
from dmdistill.core.terms import (
    Adversarial,
    DistributionMatching,
    GuidanceAugmentation,
    Regression,
    ScoreIdentity,
    Term,
)
from dmdistill.core.times import ALL_TIMES, EDM_TIMES, MATCHING_TIMES, SID_TIMES, Times, UniformTimes

__all__ = ["decoupled_dmd", "dmd", "dmd2", "regression", "sid"]


def dmd(
    generator: nn.Module,
    real: Denoiser,
    fake: Denoiser,
    *,
    distance: Distance = pseudo_huber,
    lambda_reg: float = 0.25,
    match_pairs: bool = False,
    weight: Weight = weight_eq8,
    times: Times = MATCHING_TIMES,
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
        times: at which images are diffused in Eq. 7.
    """
    rows = "all" if match_pairs else "fresh"
    matching = DistributionMatching(real, fake, times=times, weight=weight, rows=rows)
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


def dmd2(
    sampler: Sampler,
    real: Denoiser,
    fake: Denoiser,
    *,
    discriminator: Discriminator | None = None,
    gan_weight: float = 3e-3,
    discriminator_weight: float = 1e-2,
    r1: float = 0.0,
    weight: Weight = weight_eq8,
    times: Times = MATCHING_TIMES,
    critic_times: Times = ALL_TIMES,
    discriminator_update: str = "fake",
) -> Objective:
    """Build the objective of DMD2 (Yin et al., NeurIPS 2024): no regression, several fake-score updates, and a GAN.

    The number of updates of the fake score is the batch's: `z_fake` holds noise for those after the first. With the
    weight `DensityRatioWeight` it is f-distill (Xu et al. 2025), whose authors give the adversarial loss the times and
    noise of distribution matching; here it has its own, as in DMD2.

    Args:
        sampler: `OneStep` or `MultiStep` of G.
        real: mu_real.
        fake: mu_fake.
        discriminator: D, on features of mu_fake; None for no GAN.
        gan_weight: of the generator's adversarial loss.
        discriminator_weight: of the discriminator's loss.
        r1: weight of the discriminator's approximate R1 penalty.
        weight: of the distribution-matching gradient.
        times: at which images are diffused in distribution matching.
        critic_times: the same in the fake score's loss and in both of the GAN.
        discriminator_update: the update that trains D: the fake score's, whose encoder it shares, or one of its own.
    """
    terms: dict[Term, float] = {DistributionMatching(real, fake, times=times, weight=weight): 1.0}
    critics: dict[str, dict[Term, float]] = {"fake": {FakeScore(fake, times=critic_times): 1.0}}
    if discriminator is not None:
        terms[Adversarial(discriminator, fake.schedule, times=critic_times)] = gan_weight
        loss = DiscriminatorLoss(discriminator, fake, times=critic_times, r1=r1)
        critics.setdefault(discriminator_update, {})[loss] = discriminator_weight
    return Objective(sampler, {term: w for term, w in terms.items() if w}, critics)


def decoupled_dmd(
    sampler: Sampler,
    real: GuidedDenoiser,
    fake: Denoiser,
    *,
    weight: Weight = weight_eq8,
    times: UniformTimes = MATCHING_TIMES,
    critic_times: Times = ALL_TIMES,
) -> Objective:
    """Build the objective of decoupled DMD (Liu et al. 2025), in its schedule "decoupled-hybrid".

    Distribution matching to the teacher without guidance, and the part that guidance adds, each at noise of its own.

    Args:
        sampler: `OneStep` or `MultiStep` of G.
        real: mu_real, guided.
        fake: mu_fake.
        weight: of both gradients.
        times: at which images are diffused; a few-step student's guidance only below the time of its step.
        critic_times: the same in the fake score's loss.
    """
    matching = DistributionMatching(real.denoiser, fake, times=times, weight=weight)
    guidance = GuidanceAugmentation(real, times=times, weight=weight)
    return Objective(sampler, {matching: 1.0, guidance: 1.0}, {"fake": {FakeScore(fake, times=critic_times): 1.0}})


def sid(
    sampler: Sampler,
    real: Denoiser,
    fake: Denoiser,
    *,
    alpha: float = 1.2,
    times: Times = SID_TIMES,
    fake_times: Times = EDM_TIMES,
    discriminator: Discriminator | None = None,
    gan_weight: float = 1e-4,
    discriminator_weight: float = 0.5,
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    augment: Augment | None = None,
) -> Objective:
    """Build the objective of SiD (Zhou et al., ICML 2024), or with a discriminator that of SiDA (ICLR 2025).

    The fake score learns first, from fresh images: `z_fake` of the batch holds their noise.

    Args:
        sampler: `OneStep` of G.
        real: mu_real.
        fake: mu_fake.
        alpha: of the generator's loss: 1.2 or 1 in SiD, 1 in SiDA.
        times: at which images are diffused in the generator's loss.
        fake_times: the same in the fake score's and the discriminator's.
        discriminator: D, of SiDA: features of mu_fake, averaged over channels; None for SiD.
        gan_weight: of the adversarial loss beside SiD's.
        discriminator_weight: of the discriminator's loss.
        mean: averages a tensor over all processes, for the weights of SiDA's adversarial losses.
        augment: augments the images that the fake score and the discriminator learn from; None for no augmentation.
    """
    gan = {"discriminator": discriminator, "gan_weight": gan_weight, "mean": mean}
    term = ScoreIdentity(real, fake, alpha=alpha, times=times, **gan)
    critic: dict[Term, float] = {FakeScore(fake, times=fake_times, augment=augment): 1.0}
    if discriminator is not None:
        options = {"times": fake_times, "shared": True, "weighted": True, "mean": mean, "augment": augment}
        loss = DiscriminatorLoss(discriminator, fake, **options)
        critic[loss] = discriminator_weight
    return Objective(sampler, {term: 1.0}, {"fake": critic}, critics_first=True)
