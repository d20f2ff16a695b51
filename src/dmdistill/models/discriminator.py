"""Discriminators of diffused images: a head on features of a denoiser's network."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.networks.discriminator import build_head, capture_features, feature_layers

__all__ = ["DenoiserWithHead", "HeadDiscriminator", "add_head"]


class DenoiserWithHead(Denoiser):
    """A fake score that is a discriminator, too: DMD2's, whose head judges features of the network that learns.

    Args:
        denoiser: mu_fake.
        head: takes the features of the layers, returns logits, B n.
        layers: names of layers of its network.
    """

    def __init__(self, denoiser: Denoiser, head: nn.Module, layers: Sequence[str]) -> None:
        nn.Module.__init__(self)  # the network is the inner denoiser's: registered once
        self.schedule = denoiser.schedule
        self.denoiser, self.head, self.layers = denoiser, head, tuple(layers)

    @property
    def net(self) -> nn.Module:  # type: ignore[override]
        """The network."""
        return self.denoiser.net

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, logits: bool = False) -> Tensor:
        """Return mu of x_t (B ...) at times t (B), or the logits (B n) of x_t being a diffused real image."""
        if not logits:
            return self.denoiser(x_t, t, cond)
        return self.head(capture_features(self.net, self.layers, lambda: self.denoiser(x_t, t, cond)))

    def weight(self, t: Tensor) -> Tensor:
        return self.denoiser.weight(t)


@dataclass(frozen=True, eq=False)
class HeadDiscriminator:
    """A discriminator whose head judges features of a frozen denoiser, such as the teacher: f-distill's.

    Attributes:
        denoiser: the denoiser.
        head: trained, wrapped for training where several processes train.
        layers: names of layers of its network.
    """

    denoiser: Denoiser
    head: nn.Module
    layers: tuple[str, ...]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the logits (B n) of x_t (B ...) at times t (B)."""
        layers = [f"net.{name}" for name in self.layers]  # the denoiser itself may be sharded
        return self.head(capture_features(self.denoiser, layers, lambda: self.denoiser(x_t, t, cond)))


def unknown_layer(name: str, known: Sequence[str]) -> str:
    """Say which layers a network has that are named nearly so, or else those at its top."""
    if not (near := difflib.get_close_matches(name, known, n=8)):
        near = [layer for layer in known if layer.count(".") <= 1]
        near = near[:: max(len(near) // 8, 1)]
    return f"--discriminator-layers {name}: the network has no such layer, but others such as {', '.join(near)}"


@torch.no_grad()
def add_head(
    denoiser: Denoiser,
    z: Tensor,
    cond: Condition | None,
    *,
    layers: Sequence[str] = (),
    kind: str = "learned",
    features_from: Denoiser | None = None,
) -> DenoiserWithHead:
    """Add a new discriminator head to a denoiser. Its weights are drawn from torch's global generator.

    Args:
        denoiser: the denoiser.
        z: noise of one image, 1 ....
        cond: its condition.
        layers: names of layers of its network; by default those that the network names.
        kind: of the head, "learned" or "mean" (SiDA's).
        features_from: a denoiser with features of the same shapes, which are computed once; None for this one.

    Raises:
        ValueError: there are no such layers.
    """
    names = list(layers) or feature_layers(denoiser.net)
    known = dict(denoiser.net.named_modules())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(unknown_layer(unknown[0], [name for name in known if name]))
    source = features_from or denoiser
    t = z.new_full((len(z),), source.schedule.t_max)
    features = capture_features(source, [f"net.{name}" for name in names], lambda: source(z, t, cond))
    with z.device:
        head = build_head(features, kind)
    return DenoiserWithHead(denoiser, head, names)
