"""Algorithm 1: distribution matching distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.losses import (
    WEIGHTS,
    Distance,
    Weight,
    denoising_loss,
    distribution_matching_loss,
    pseudo_huber,
    regression_loss,
)
from dmdistill.core.samples import Batch

__all__ = ["DMD", "NonFiniteError"]

Update = Callable[[Tensor], None]
"""Takes a loss, moves one network: backward, clip, optimiser, schedule, averages."""


class NonFiniteError(FloatingPointError):
    """A loss is NaN or infinite. The message names the network, the sample and its time."""


class DMD:
    """Three networks and the losses between them. It holds no device, no optimiser and no file.

    Args:
        generator: G, trained. real: mu_real, frozen, guided where wanted. fake: mu_fake, trained, never guided.
        distance: of the regression loss, per sample.
        lambda_reg: weight of the regression loss; 0 needs no pairs.
        match_pairs: the images of the pairs' noise are matched too, and teach mu_fake: x = concat(x, x_ref), as the
            paper does on LAION.
        match: False leaves the distribution matching out: regression alone.
        follow: False leaves mu_fake as it is where nothing is matched; True lets it learn the images of the pairs'
            noise meanwhile, so that it knows the generator when matching begins.
        low, high: the fractions of the time range that Eq. 7 draws from; Eq. 6 draws from all of it.
        weight: of the distribution-matching gradient, Eq. 8 by default.
        rng: of every draw in `step`, on the device of the networks.

    Attributes:
        careful: look at each loss before it is used, which waits for the device; else whoever updates looks later.
    """

    def __init__(
        self,
        generator: Generator,
        real: Denoiser,
        fake: Denoiser,
        *,
        rng: torch.Generator,
        distance: Distance = pseudo_huber,
        lambda_reg: float = 0.25,
        match: bool = True,
        match_pairs: bool = False,
        follow: bool = False,
        low: float = 0.02,
        high: float = 0.98,
        weight: Weight = WEIGHTS["eq8"],
    ) -> None:
        self.generator, self.real, self.fake = generator, real, fake
        self.rng, self.distance, self.lambda_reg, self.weight = rng, distance, lambda_reg, weight
        self.match, self.match_pairs, self.follow, self.low, self.high = match, match_pairs, follow, low, high
        self.careful = True

    def step(self, batch: Batch, update_generator: Update, update_fake: Update) -> dict[str, Tensor]:
        """One iteration of Algorithm 1 of Yin et al. (2024). Returns its losses, detached, on their device."""
        x, cond, losses = self.generator_losses(batch)
        update_generator(self.total(losses))
        for images, told in self.fake_batches(x, cond, batch):
            losses["loss_fake"] = self.fake_loss(images, told)
            update_fake(losses["loss_fake"])
        return {name: loss.detach() for name, loss in losses.items()}

    def generator_losses(self, batch: Batch) -> tuple[Tensor, Condition | None, dict[str, Tensor]]:
        """Generated images, detached, and their conditions; the losses of the generator by name."""
        x, cond, x_ref = self.generate(batch)
        losses = {}
        if self.match:
            t, eps = self.draw(x, self.low, self.high)
            losses["loss_kl"] = distribution_matching_loss(x, self.real, self.fake, t, eps, cond, weight=self.weight)
            self.check("loss_kl", losses["loss_kl"], x, t, eps, cond)
        if x_ref is not None and batch.y_ref is not None:
            losses["loss_reg"] = regression_loss(x_ref, batch.y_ref, self.distance)
            self.check_pairs(losses["loss_reg"], x_ref, batch.y_ref)
        if not losses:
            raise ValueError("nothing to train the generator on: match is False and the batch has no z_ref and y_ref")
        return x.detach(), cond, losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The generator's loss."""
        return torch.as_tensor(losses.get("loss_kl", 0) + self.lambda_reg * losses.get("loss_reg", 0))

    def fake_loss(self, x: Tensor, cond: Condition | None) -> Tensor:
        """Eq. 6 of images, which is the fake score's loss."""
        t, eps = self.draw(x)
        loss = denoising_loss(self.fake, x, t, eps, cond)
        self.check("loss_fake", loss, x, t, eps, cond)
        return loss

    def generate(self, batch: Batch) -> tuple[Tensor, Condition | None, Tensor | None]:
        """x, which is judged and learnt, its conditions, and x_ref = G(z_ref), from one call.

        x is G(z); with x_ref behind it where pairs are matched too; x_ref alone where nothing is matched.
        """
        if batch.z_ref is None:
            return self.generator(batch.z, batch.cond), batch.cond, None
        if not self.match:
            x_ref = self.generator(batch.z_ref, batch.cond_ref)
            return x_ref, batch.cond_ref, x_ref
        cond = join(batch.cond, batch.cond_ref)
        both = self.generator(torch.cat([batch.z, batch.z_ref]), cond)
        x, x_ref = both.split([len(batch.z), len(batch.z_ref)])
        return (both, cond, x_ref) if self.match_pairs else (x, batch.cond, x_ref)

    def fake_batches(
        self, x: Tensor, cond: Condition | None, batch: Batch
    ) -> Iterator[tuple[Tensor, Condition | None]]:
        """Images for the fake score: the generator's own x first, as in Algorithm 1, then fresh ones from one call."""
        if not (self.match or self.follow):
            return
        yield x, cond
        if batch.z_fake is not None:
            with torch.no_grad():
                images = self.generator(batch.z_fake, batch.cond_fake)
            for start in range(0, len(images), len(batch.z)):
                rows = slice(start, start + len(batch.z))
                yield images[rows], batch.cond_fake[rows] if batch.cond_fake is not None else None

    def draw(self, x: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
        """A time per sample and noise of x's shape."""
        t = self.real.schedule.sample_t(len(x), low, high, rng=self.rng)
        return t, torch.randn(x.shape, generator=self.rng, device=x.device)

    @torch.no_grad()
    def check(self, name: str, loss: Tensor, x: Tensor, t: Tensor, eps: Tensor, cond: Condition | None) -> None:
        """Raise NonFiniteError, naming the first network that answers with NaN or infinity, where `loss` is one."""
        if not self.careful or torch.isfinite(loss):
            return
        x_t = self.real.schedule.diffuse(x, eps, t)
        mu_real, mu_fake = self.real(x_t, t, cond), self.fake(x_t, t, cond)
        blame(name, loss, "the generator", x, torch.full_like(t, self.real.schedule.t_max))
        blame(name, loss, "mu_real", mu_real, t)
        blame(name, loss, "mu_fake", mu_fake, t)
        raise NonFiniteError(f"{name} is {loss.item()} though every network's answer is finite")

    @torch.no_grad()
    def check_pairs(self, loss: Tensor, x_ref: Tensor, y_ref: Tensor) -> None:
        """The same for the regression, which asks the generator alone."""
        if not self.careful or torch.isfinite(loss):
            return
        last = x_ref.new_full((len(x_ref),), self.real.schedule.t_max)
        blame("loss_reg", loss, "the generator", x_ref, last)
        blame("loss_reg", loss, "the solver of y_ref", y_ref, last)
        raise NonFiniteError(f"loss_reg is {loss.item()} though x_ref and y_ref are finite: see the distance")


def join(cond: Condition | None, cond_ref: Condition | None) -> Condition | None:
    """The conditions of x, then those of x_ref. ValueError where only one of them has any."""
    if (cond is None) != (cond_ref is None):
        raise ValueError("z or z_ref has a condition and the other has none, expected both or neither")
    return cond.concat(cond_ref) if cond is not None and cond_ref is not None else None


def blame(name: str, loss: Tensor, network: str, answer: Tensor, t: Tensor) -> None:
    """Raise NonFiniteError if the network's answer (B ...) at times t (B) has NaN or infinity."""
    bad = (~torch.isfinite(answer.flatten(1)).all(1)).nonzero()
    if len(bad):
        i = int(bad[0])
        raise NonFiniteError(
            f"{name} is {loss.item()}: {network} answers with NaN or infinity for {len(bad)} of {len(answer)} "
            f"samples, first for sample {i} at time {t[i].item():.4g}"
        )
