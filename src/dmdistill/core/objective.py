"""Algorithm 1 of distribution matching distillation, for any sum of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.core.losses import describe_output
from dmdistill.core.noise import NoiseSource
from dmdistill.core.samples import Batch, Samples
from dmdistill.core.terms import Term

__all__ = ["Objective", "Sampler", "Update", "UpdateLoss"]

Update = Callable[[Tensor], None]
"""Takes a loss and updates one network: backward, clipping, optimizer, learning-rate schedule, EMA."""


class Sampler(Protocol):
    """How an objective samples the generator."""

    def __call__(self, batch: Batch, noise: NoiseSource) -> Samples:
        """Generate the images of a batch, with their graph."""
        ...

    def fresh(self, batch: Batch, noise: NoiseSource) -> Iterator[Samples]:
        """Yield images of the batch's fresh noise, one group for each update of the critics, without a graph."""
        ...


@dataclass(frozen=True)
class UpdateLoss:
    """The loss of one update: its name, the unweighted losses by term, and their weighted sum."""

    update: str
    losses: Mapping[str, Tensor]
    total: Tensor


@dataclass(frozen=True)
class Objective:
    """A sum of terms for the generator, and critics that learn from its samples.

    It holds no device, no optimizer and no file: a phase of a run is another objective.

    Attributes:
        sampler: generates the images of a batch: `OneStep` or `MultiStep`.
        terms: the generator's loss, as terms and their weights; none where it does not learn.
        critics: by the name of their update, the loss of the networks that learn from generated images.
        critics_first: the critics learn before the generator, from fresh images only, as in SiD; else after it, first
            from the images of its own update, as in DMD and DMD2.
    """

    sampler: Sampler
    terms: Mapping[Term, float]
    critics: Mapping[str, Mapping[Term, float]] = field(default_factory=dict)
    critics_first: bool = False

    def step(self, batch: Batch, noise: NoiseSource, updates: Mapping[str, Update]) -> dict[str, Tensor]:
        """Run one iteration of Algorithm 1. Returns its losses by term, detached, on their device."""
        losses: dict[str, Tensor] = {}
        for loss in self.iteration(batch, noise):
            updates[loss.update](loss.total)
            losses |= loss.losses
        return {name: loss.detach() for name, loss in losses.items()}

    def iteration(self, batch: Batch, noise: NoiseSource) -> Iterator[UpdateLoss]:
        """Algorithm 1 of Yin et al. (2024): the generator's loss, then the critics' on the same samples.

        A network must be updated by the loss that was yielded before the next one is taken.
        """
        if self.critics_first:
            yield from self.critic_losses(self.sampler.fresh(batch, noise), batch, noise)
        with torch.set_grad_enabled(bool(self.terms)):
            samples = self.sampler(batch, noise)
        if self.terms:
            yield update_loss("generator", self.terms, samples, batch, noise)
        if not self.critics_first:
            yield from self.critic_losses(self.critic_samples(samples, batch, noise), batch, noise)

    def critic_samples(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Iterator[Samples]:
        """Yield the samples of the critics' updates: the generator's own, then fresh ones (5:1 in DMD2)."""
        yield samples.detach()
        yield from self.sampler.fresh(batch, noise)

    def critic_losses(self, generated: Iterator[Samples], batch: Batch, noise: NoiseSource) -> Iterator[UpdateLoss]:
        """Yield the losses of the critics, in turn, on each group of samples."""
        if self.critics:
            for number, samples in enumerate(generated):
                with_real = replace(samples, real=batch.real_images(number))
                for name, terms in self.critics.items():
                    yield update_loss(name, terms, with_real, batch, noise)


def update_loss(
    update: str, terms: Mapping[Term, float], samples: Samples, batch: Batch, noise: NoiseSource
) -> UpdateLoss:
    """Evaluate terms on samples. ValueError where there are none, or where one is no scalar."""
    if not terms:
        raise ValueError(f"the objective has no term for the update of {update!r}")
    losses = {term.name: term(samples, batch, noise) for term in terms}
    if odd := [name for name, loss in losses.items() if not isinstance(loss, Tensor) or loss.ndim]:
        given = describe_output(losses[odd[0]])
        raise ValueError(f"the term {odd[0]!r} returned {given}, expected a scalar tensor, such as a mean")
    first, *others = (weight * losses[term.name] for term, weight in terms.items())
    return UpdateLoss(update, losses, sum(others, first))
