"""What the U-Nets of EDM (Karras et al. 2022) share: their blocks' order, and what is handed from side to side.

Names of modules and parameters are those of EDM's published checkpoints, so that their weights load by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dmdistill.networks.layers import Resample
from dmdistill.networks.residual_block import UNetBlock

__all__ = ["HasLabels", "Level", "UNet", "plan"]


class HasLabels(Protocol):
    """one_hot: B label_dim, rows of one-hot or of zeros (no class). In training also `augment`, B augment_dim."""

    @property
    def one_hot(self) -> Tensor: ...


class Level(NamedTuple):
    """One resolution: what its modules' names begin with, its channels, whether its blocks attend."""

    name: str
    width: int
    attends: bool


def plan(
    resolution: int,
    model_channels: int,
    channel_mult: Sequence[int],
    *,
    attn_resolutions: Sequence[int],
    patch_size: int = 1,
) -> list[Level]:
    """A level per multiplier, each of half the resolution of the one before; the first sees patches.

    ValueError where the images cannot be cut into patches, or those not halved so often.
    """
    depth = len(channel_mult)
    if patch_size < 1 or model_channels < 4 or model_channels % 2:
        raise ValueError(
            f"patch_size {patch_size}, model_channels {model_channels}: expected at least 1, and an even number from 4"
        )
    if not depth or resolution % (patch_size << depth - 1):
        raise ValueError(
            f"images of {resolution} x {resolution} in patches of {patch_size}: cannot be halved {depth - 1} times, "
            f"which is what {depth} levels of channel_mult do"
        )
    sizes = [resolution // patch_size >> level for level in range(depth)]
    return [
        Level(f"{size}x{size}", model_channels * multiplier, size in attn_resolutions)
        for size, multiplier in zip(sizes, channel_mult, strict=True)
    ]


class UNet(nn.Module):
    """F(x, noise, cond): an encoder, every output of which is handed to the decoder.

    A subclass gives `build` its blocks, says what they are told (`embed`), and how it all ends (`decode`).
    """

    def __init__(self, *, label_dim: int, label_dropout: float, augment_dim: int = 0) -> None:
        super().__init__()
        self.label_dim, self.label_dropout, self.augment_dim = label_dim, label_dropout, augment_dim
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.register_load_state_dict_pre_hook(take_filters)

    def build(
        self,
        levels: list[Level],
        stem: nn.Conv2d,
        block: Callable[..., UNetBlock],
        *,
        num_blocks: int,
        attends_last: bool,
    ) -> None:
        """Fill `enc` and `dec`. With `attends_last` only the last block of each of the decoder's levels attends.

        ValueError where there are no blocks.
        """
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks}: expected at least 1")
        self.enc[f"{levels[0].name}_conv"] = stem
        outputs = [stem.out_channels]  # channels of what the encoder hands over
        for level in levels:
            if level is not levels[0]:
                self.enc[f"{level.name}_down"] = block(outputs[-1], outputs[-1], resample="down")
                self.enc.update(self.image_in(level, outputs[-1]))
                outputs.append(outputs[-1])
            for index in range(num_blocks):
                self.enc[f"{level.name}_block{index}"] = block(outputs[-1], level.width, attends=level.attends)
                outputs.append(level.width)

        width = levels[-1].width
        for level in reversed(levels):
            if level is levels[-1]:
                self.dec[f"{level.name}_in0"] = block(width, width, attends=True)
                self.dec[f"{level.name}_in1"] = block(width, width)
            else:
                self.dec[f"{level.name}_up"] = block(width, width, resample="up")
            for index in range(num_blocks + 1):
                attends = level.attends and (index == num_blocks or not attends_last)
                self.dec[f"{level.name}_block{index}"] = block(width + outputs.pop(), level.width, attends=attends)
                width = level.width
            self.dec.update(self.image_out(level, first=level is levels[0], last=level is levels[-1]))

    def image_in(self, level: Level, channels: int) -> Mapping[str, nn.Module]:
        """Modules that bring the image itself to a lower level, of so many channels there, by name."""
        return {}

    def image_out(self, level: Level, *, first: bool, last: bool) -> Mapping[str, nn.Module]:
        """Modules that make the image of what leaves a level of the decoder, by name; first and last as in `enc`."""
        return {}

    def forward(self, x: Tensor, noise: Tensor, cond: HasLabels | None = None) -> Tensor:
        """x: B C H W; noise: B. Returns B out_channels H W. ValueError where labels are given or lacking wrongly."""
        emb = self.embed(noise, self.labels(cond), self.augment(cond))
        return self.decode(self.encode(x, emb), emb)

    def labels(self, cond: HasLabels | None) -> Tensor | None:
        """One-hot labels; None in an unconditional network. In training some are forgotten, with `label_dropout`."""
        given = cond.one_hot.shape[1] if cond is not None else 0
        if given != self.label_dim:
            raise ValueError(f"labels of {given} classes, this network was built for {self.label_dim}")
        if cond is None or not (self.training and self.label_dropout):
            return cond.one_hot if cond is not None else None
        return cond.one_hot * (torch.rand_like(cond.one_hot[:, :1]) >= self.label_dropout)

    def augment(self, cond: HasLabels | None) -> Tensor | None:
        """What was done to the images, B augment_dim; None where nothing was."""
        found: Tensor | None = getattr(cond, "augment", None)
        if found is not None and found.shape[1] != self.augment_dim:
            raise ValueError(f"{found.shape[1]} labels of augmentation, this network was built for {self.augment_dim}")
        return found

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """What the blocks are told, B emb_channels, of noise levels B, labels B label_dim and `augment`."""
        raise NotImplementedError

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All that is handed to the decoder, in the order it is made."""
        stem, *blocks = self.enc.values()
        outputs = [stem(x)]
        for block in blocks:
            outputs.append(block(outputs[-1], emb))
        return outputs

    def decode(self, outputs: list[Tensor], emb: Tensor) -> Tensor:
        """B out_channels H W, of the encoder's outputs."""
        raise NotImplementedError


def beside(x: Tensor, outputs: list[Tensor], block: nn.Module) -> Tensor:
    """x, and beside it the latest of the encoder's outputs not yet used, where the block has channels for both."""
    return torch.cat([x, outputs.pop()], dim=1) if x.shape[1] != block.in_channels else x


def take_filters(network: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Take the resampling filters out of a published checkpoint's state; an error where they are not the network's."""
    errors: list[str] = rest[-1]
    ours = next((module.taps for module in network.modules() if isinstance(module, Resample)), None)
    for name in [name for name in state if name.startswith(prefix) and name.endswith(".resample_filter")]:
        found = state.pop(name)
        if ours is None or found.shape != ours.shape or not torch.allclose(found.to(ours), ours):
            errors.append(f"{name} is not the resample_filter that this network was built with")
