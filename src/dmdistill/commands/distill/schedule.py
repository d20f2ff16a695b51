"""The phases of a distillation: what each step computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.method_options import METHODS, Method

__all__ = ["BatchNeeds", "Phase", "PhaseSchedule"]


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of one kind: what they do, in words, the first of them, and how many there are."""

    name: str
    first: int
    steps: int


@dataclass(frozen=True)
class BatchNeeds:
    """What a step's batch holds beside noise for the generator.

    Attributes:
        paired: it has noise-image pairs.
        fresh: groups of noise for updates of the critics on images of their own.
        real: groups of real images, one for each update of the critics.
        same_conditions: the critics' own generated images have the conditions of the real ones, as in SiDA.
    """

    paired: bool = False
    fresh: int = 0
    real: int = 0
    same_conditions: bool = False


@dataclass(frozen=True)
class PhaseSchedule:
    """When distributions are matched, when the fake score learns, when there is a regression, and when a GAN.

    Steps count from 0. Fractions are those of `phase_steps`, with which a run began that is resumed for more steps. A
    method of the user's own has one phase: all of this in every step.
    """

    config: DistillConfig

    @property
    def method(self) -> Method | None:
        """The method; None for the user's own."""
        return METHODS.get(self.config.method)

    @property
    def phase_steps(self) -> int:
        """The number of steps of which the phases are fractions."""
        return self.config.matching.phase_steps or self.config.steps

    def first_step(self, fraction: float) -> int:
        """Return the first step after a fraction of the run; the number of steps where it is not reached."""
        return min(int(fraction * self.phase_steps), self.config.steps)

    @property
    def match_step(self) -> int:
        """The first step in which distributions are matched."""
        config = self.config
        if self.method is None or not self.method.regression:
            return min(config.score.generator_from, config.steps) if self.method is not None else 0
        return self.first_step(config.matching.match_from) if config.regression.lambda_reg > 0 else 0

    @property
    def fake_step(self) -> int:
        """The first step in which the fake score learns."""
        if self.method is not None and not self.method.regression:
            return 0
        return min(self.match_step, self.first_step(self.config.fake_score.fake_from))

    @property
    def regression_end(self) -> int:
        """The first step without a regression."""
        share = self.config.regression.regress_until if self.config.method == "dmd" else 1.0
        return self.first_step(share) if share < 1 else self.config.steps  # 1: as long as the run lasts

    @property
    def gan_step(self) -> int:
        """The first step in which the generator has an adversarial loss."""
        return max(self.match_step, min(self.config.gan.gan_from, self.config.steps)) if self.has_gan else 0

    @property
    def has_gan(self) -> bool:
        """Whether the run has a discriminator."""
        return self.method is not None and bool(self.method.gan) and self.config.gan.data is not None

    @property
    def matching(self) -> bool:
        """Whether the run matches distributions at all."""
        return self.config.matching.match or self.config.method != "dmd"

    def matches(self, step: int) -> bool:
        """Whether a step matches distributions."""
        return self.matching and step >= self.match_step

    def trains_fake(self, step: int) -> bool:
        """Whether the fake score learns in a step."""
        return self.matching and step >= self.fake_step

    def regresses(self, step: int) -> bool:
        """Whether a step has a regression."""
        return self.config.regression.lambda_reg > 0 and step < self.regression_end

    def fake_steps(self, step: int) -> int:
        """Count the updates of the fake score in a step."""
        return self.config.fake_score.fake_steps if self.matches(step) else int(self.trains_fake(step))

    def lambda_reg(self, step: int) -> float:
        """Return the weight of the regression in a step; it falls linearly to a share, `lambda_end`, and stays."""
        options = self.config.regression
        return options.lambda_reg * (1 + (options.lambda_end - 1) * min(step / self.phase_steps, 1.0))

    def batch_needs(self, step: int) -> BatchNeeds:
        """Return what a step's batch holds."""
        updates = self.fake_steps(step)
        own = self.method is not None and self.method.critics_first
        real = updates if self.has_gan or self.config.student.student_inputs == "data" else 0
        fresh = updates if own else max(updates - 1, 0)
        return BatchNeeds(self.regresses(step), fresh, real, same_conditions=own and real > 0)

    @property
    def fake_updates(self) -> int:
        """The number of updates of the fake score in the run."""
        ahead, together = self.match_step - self.fake_step, self.config.steps - self.match_step
        return ahead + together * self.config.fake_score.fake_steps

    def step_work(self, step: int) -> int:
        """Estimate the work of a step, for the ETA: the images that pass through a network; backward counts twice."""
        batch, needs = self.config.batch, self.batch_needs(step)
        regression = 3 * self.config.regression.batch_reg if needs.paired else 0
        matching = 6 * batch if self.matches(step) else 0  # the generator both ways, mu_fake, and mu_real guided
        return regression + matching + batch * (3 * self.fake_steps(step) + needs.fresh)

    def work(self, steps: int) -> float:
        """Estimate the work of the first so many steps."""
        return sum(self.step_work(phase.first) * min(max(steps - phase.first, 0), phase.steps) for phase in self.phases)

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases in their order."""
        edges = {0, self.fake_step, self.match_step, self.regression_end, self.gan_step, self.config.steps}
        parts = [Phase(self.describe(first), first, end - first) for first, end in pairwise(sorted(edges))]
        merged = [list(group) for _, group in groupby(parts, lambda phase: phase.name)]
        return [replace(group[0], steps=sum(phase.steps for phase in group)) for group in merged]

    def describe(self, step: int) -> str:
        """Name what a step does."""
        matches = self.matches(step)
        words = {
            "matching": matches,
            "regression": self.regresses(step),
            "fake score": self.trains_fake(step) and not matches,
            "GAN": matches and self.has_gan and step >= self.gan_step,
        }
        return ", ".join(word for word, present in words.items() if present)
