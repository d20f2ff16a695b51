"""The course of a distillation: which of its steps do what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from dmdistill.commands.distill.config import DistillConfig

__all__ = ["Course", "Phase"]


@dataclass(frozen=True)
class Phase:
    """Steps of one kind. name: what they do. first: of them. steps: how many."""

    name: str
    first: int
    steps: int


@dataclass(frozen=True)
class Course:
    """What a configuration asks of each step, counted from 0.

    match_step, follow_step: the first in which distributions are matched, and in which the fake score learns.
    regress_end: the first without the regression.
    """

    config: DistillConfig

    @property
    def match_step(self) -> int:
        return int(self.config.match_from * self.config.steps) if self.config.lambda_reg > 0 else 0

    @property
    def follow_step(self) -> int:
        return min(self.match_step, int(self.config.fake_from * self.config.steps))

    @property
    def regress_end(self) -> int:
        return int(self.config.regress_until * self.config.steps)

    def matches(self, step: int) -> bool:
        return self.config.match and step >= self.match_step

    def follows(self, step: int) -> bool:
        """Whether the fake score learns."""
        return self.config.match and step >= self.follow_step

    def regresses(self, step: int) -> bool:
        return self.config.lambda_reg > 0 and step < self.regress_end

    def lambda_reg(self, step: int) -> float:
        """The weight of the regression, which falls in a line to `lambda_end` of it."""
        return self.config.lambda_reg * (1 + (self.config.lambda_end - 1) * step / self.config.steps)

    @property
    def fake_updates(self) -> int:
        """Of the fake score, in all."""
        ahead, together = self.match_step - self.follow_step, self.config.steps - self.match_step
        return ahead + together * self.config.fake_steps

    @property
    def phases(self) -> list[Phase]:
        """The steps, by what they do."""
        edges = {0, self.follow_step, self.match_step, self.regress_end, self.config.steps}
        parts = [Phase(self.doing(first), first, end - first) for first, end in pairwise(sorted(edges))]
        merged = [list(group) for _, group in groupby(parts, lambda one: one.name)]
        return [replace(group[0], steps=sum(one.steps for one in group)) for group in merged]

    def doing(self, step: int) -> str:
        matches = self.matches(step)
        ahead = self.follows(step) and not matches
        words = {"matching": matches, "regression": self.regresses(step), "fake score": ahead}
        return ", ".join(word for word, done in words.items() if done)
