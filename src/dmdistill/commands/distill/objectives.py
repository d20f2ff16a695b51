"""The objective of each step of a distillation: its method's, in the phase of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.core.critics import Augment
from dmdistill.core.denoisers import Denoiser, GuidedDenoiser
from dmdistill.core.divergences import DensityRatioWeight, Discriminator, Divergence, RatioAverages
from dmdistill.core.generators import MultiStep, OneStep
from dmdistill.core.losses import Distance, Weight
from dmdistill.core.methods import decoupled_dmd, dmd, dmd2, regression, sid
from dmdistill.core.objective import Objective, Sampler
from dmdistill.core.times import UniformTimes
from dmdistill.data.augmentation import GeometricAugmentation
from dmdistill.data.training_set import SampleAugmentation

__all__ = ["Networks", "Objectives"]


@dataclass(frozen=True)
class Networks:
    """The networks of a distillation, as they are called in training.

    Attributes:
        generator: G.
        real: mu_real, guided.
        fake: mu_fake.
        discriminator: of diffused images; None without a GAN.
        separate: whether the discriminator has an update of its own, as it shares nothing with the fake score.
    """

    generator: nn.Module
    real: Denoiser
    fake: Denoiser
    discriminator: Discriminator | None = None
    separate: bool = False


@dataclass(frozen=True)
class Objectives:
    """The objective of each step of a distillation.

    Attributes:
        schedule: of the phases.
        networks: the networks in training.
        distance: of the regression.
        weight: of the distribution-matching gradient.
        mean: averages a tensor over all processes.
        ratios: averages of f-distill's density ratio, which change with its steps.
        own: the objective of the user's own method, which has all steps; None for ours.
        divergence: of f-distill.
    """

    schedule: PhaseSchedule
    networks: Networks
    distance: Distance
    weight: Weight
    mean: Callable[[Tensor], Tensor]
    ratios: RatioAverages = field(default_factory=RatioAverages)
    own: Objective | None = None
    divergence: str | Divergence = "js"

    def at(self, step: int) -> Objective:
        """Return the objective of a step."""
        if self.own is not None:
            return self.own
        if self.schedule.config.method == "dmd":
            return self.dmd(step)
        objective = self.family(adversarial=step >= self.schedule.gan_step)
        return objective if self.schedule.matches(step) else replace(objective, terms={})

    @property
    def times(self) -> UniformTimes:
        """The times of distribution matching."""
        options = self.schedule.config.matching
        return UniformTimes(options.min_t, options.max_t, options.time_shift)

    @property
    def critic_times(self) -> UniformTimes:
        """The times of the fake score's loss, and of a GAN's, in the methods after DMD but SiD's."""
        return UniformTimes(shift=self.schedule.config.matching.time_shift)

    @property
    def sampler(self) -> Sampler:
        """The sampler of a method without pairs."""
        options = self.schedule.config.student
        if options.step_count == 1:
            return OneStep(self.networks.generator, "fresh")
        return MultiStep(self.networks.generator, options.student_inputs)

    def dmd(self, step: int) -> Objective:
        """Return the objective of DMD in a step: regression alone before distributions are matched."""
        schedule, networks = self.schedule, self.networks
        lambda_reg = schedule.lambda_reg(step) if schedule.regresses(step) else 0.0
        if not schedule.matches(step):
            fake = networks.fake if schedule.trains_fake(step) else None
            return regression(networks.generator, distance=self.distance, lambda_reg=lambda_reg, fake=fake)
        return dmd(
            networks.generator,
            networks.real,
            networks.fake,
            distance=self.distance,
            lambda_reg=lambda_reg,
            match_pairs=schedule.config.matching.match_pairs,
            weight=self.weight,
            times=self.times,
        )

    def family(self, *, adversarial: bool) -> Objective:
        """Return the objective of the methods after DMD.

        Args:
            adversarial: whether the generator has its adversarial loss; the discriminator learns in any case.
        """
        config, networks = self.schedule.config, self.networks
        trio = (self.sampler, networks.real, networks.fake)
        gan_weight = config.gan.gan_weight if adversarial else 0.0
        gan = {"discriminator": networks.discriminator, "discriminator_weight": config.gan.discriminator_weight}
        if config.method == "decoupled-dmd":
            assert isinstance(networks.real, GuidedDenoiser)
            times = {"times": self.times, "critic_times": self.critic_times}
            return decoupled_dmd(self.sampler, networks.real, networks.fake, weight=self.weight, **times)
        if config.method in ("sid", "sida"):
            options = {
                "alpha": config.score.sid_alpha,
                "times": self.times,
                "gan_weight": gan_weight,
                "mean": self.mean,
                "augment": self.augment,
            }
            return sid(*trio, **options, **gan)
        weight, update = self.weight, "discriminator" if networks.separate else "fake"
        if config.method == "f-distill":
            weight = self.ratio_weight
        options = {"r1": config.gan.r1, "weight": weight, "times": self.times, "discriminator_update": update}
        options["critic_times"] = self.critic_times
        return dmd2(*trio, gan_weight=gan_weight, **gan, **options)

    @property
    def augment(self) -> Augment | None:
        """The augmentation of the images that SiD's fake score learns from; None without one."""
        probability = self.schedule.config.fake_score.augment_fake
        return SampleAugmentation(GeometricAugmentation(probability)) if probability else None

    @property
    def ratio_weight(self) -> Weight:
        """The weight of f-distill."""
        assert self.networks.discriminator is not None
        schedule = self.networks.real.schedule
        low, high = schedule.time_range
        averages = {"mean": self.mean, "averages": self.ratios}
        return DensityRatioWeight(self.networks.discriminator, self.divergence, low, high, **averages)
