"""The phases of a distillation: which objective each step has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from torch import nn

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import Distance, Weight
from dmdistill.core.methods import dmd, regression
from dmdistill.core.objective import Objective
from dmdistill.core.times import UniformTimes

__all__ = ["Objectives", "Phase", "PhaseSchedule"]


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of one kind: what they do, in words, the first of them, and how many there are."""

    name: str
    first: int
    steps: int


@dataclass(frozen=True)
class PhaseSchedule:
    """When distributions are matched, when the fake score learns, and when there is a regression.

    Steps count from 0. A method of the user's own has one phase: all of this in every step.
    """

    config: DistillConfig

    @property
    def match_step(self) -> int:
        """The first step in which distributions are matched."""
        config = self.config
        has_phases = config.method == "dmd" and config.regression.lambda_reg > 0
        return int(config.matching.match_from * config.steps) if has_phases else 0

    @property
    def fake_step(self) -> int:
        """The first step in which the fake score learns."""
        return min(self.match_step, int(self.config.fake_score.fake_from * self.config.steps))

    @property
    def regression_end(self) -> int:
        """The first step without a regression."""
        share = self.config.regression.regress_until if self.config.method == "dmd" else 1.0
        return int(share * self.config.steps)

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
        """Return the weight of the regression in a step; it falls linearly to the share `lambda_end`."""
        options = self.config.regression
        return options.lambda_reg * (1 + (options.lambda_end - 1) * step / self.config.steps)

    @property
    def fake_updates(self) -> int:
        """The number of updates of the fake score in the run."""
        ahead, together = self.match_step - self.fake_step, self.config.steps - self.match_step
        return ahead + together * self.config.fake_score.fake_steps

    @property
    def phases(self) -> list[Phase]:
        """The phases in their order."""
        edges = {0, self.fake_step, self.match_step, self.regression_end, self.config.steps}
        parts = [Phase(self.describe(first), first, end - first) for first, end in pairwise(sorted(edges))]
        merged = [list(group) for _, group in groupby(parts, lambda phase: phase.name)]
        return [replace(group[0], steps=sum(phase.steps for phase in group)) for group in merged]

    def describe(self, step: int) -> str:
        """Name what a step does."""
        matches = self.matches(step)
        ahead = self.trains_fake(step) and not matches
        words = {"matching": matches, "regression": self.regresses(step), "fake score": ahead}
        return ", ".join(word for word, present in words.items() if present)


@dataclass(frozen=True)
class Objectives:
    """The objective of each step of a distillation.

    Attributes:
        schedule: of the phases.
        generator: the generator, as it is called in training.
        real: mu_real, likewise.
        fake: mu_fake, likewise.
        distance: of the regression.
        weight: of the distribution-matching gradient.
        own: the objective of the user's own method, which has all steps; None for DMD.
    """

    schedule: PhaseSchedule
    generator: nn.Module
    real: Denoiser
    fake: Denoiser
    distance: Distance
    weight: Weight
    own: Objective | None = None

    def at(self, step: int) -> Objective:
        """Return the objective of a step."""
        if self.own is not None:
            return self.own
        schedule, matching = self.schedule, self.schedule.config.matching
        lambda_reg = schedule.lambda_reg(step) if schedule.regresses(step) else 0.0
        if not schedule.matches(step):
            fake = self.fake if schedule.trains_fake(step) else None
            return regression(self.generator, distance=self.distance, lambda_reg=lambda_reg, fake=fake)
        return dmd(
            self.generator,
            self.real,
            self.fake,
            distance=self.distance,
            lambda_reg=lambda_reg,
            match_pairs=matching.match_pairs,
            weight=self.weight,
            times=UniformTimes(matching.min_t, matching.max_t),
        )
