"""The base class of EDM's U-Nets (Karras et al. 2022): the order of their blocks, and their skip connections.

Names of modules and parameters are those of EDM's published checkpoints, so that their weights load by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dmdistill.networks.layers import Resample, is_filter
from dmdistill.networks.residual_block import UNetBlock

__all__ = ["LabelCondition", "Level", "UNet", "concat_skip", "plan_levels"]


class LabelCondition(Protocol):
    """A condition on classes; in training it may also have `augment`, augmentation labels (B augment_dim)."""

    @property
    def one_hot(self) -> Tensor:
        """One-hot labels (B label_dim); a row of zeros is no class."""
        ...


class Level(NamedTuple):
    """One resolution of a U-Net.

    Attributes:
        name: with which the names of its modules begin.
        width: its channels.
        attends: whether its blocks have self-attention.
    """

    name: str
    width: int
    attends: bool


def plan_levels(
    resolution: int,
    model_channels: int,
    channel_mult: Sequence[int],
    *,
    attn_resolutions: Sequence[int],
    patch_size: int = 1,
) -> list[Level]:
    """Return one level per multiplier, each of half the resolution of the one before.

    Args:
        resolution: height and width of the images.
        model_channels: of a level with multiplier 1.
        channel_mult: the multipliers.
        attn_resolutions: the resolutions, in patches, of levels with self-attention.
        patch_size: pixels on a side of a patch, which the first level takes for a pixel.

    Raises:
        ValueError: images cannot be cut into patches, or patches not be halved so often.
    """
    depth = len(channel_mult)
    if patch_size < 1 or model_channels < 4 or model_channels % 2:
        raise ValueError(
            f"patch_size {patch_size}, expected at least 1; "
            f"model_channels {model_channels}, expected an even number from 4"
        )
    if not depth or resolution % (patch_size << depth - 1):
        raise ValueError(
            f"images of {resolution} x {resolution} in patches of {patch_size}: cannot be halved {depth - 1} times, "
            f"as {depth} levels of channel_mult do"
        )
    sizes = [resolution // patch_size >> level for level in range(depth)]
    return [
        Level(f"{size}x{size}", model_channels * multiplier, size in attn_resolutions)
        for size, multiplier in zip(sizes, channel_mult, strict=True)
    ]


class UNet(nn.Module):
    """Base class of F(x, noise, cond): an encoder, and a decoder with a skip connection from each of its outputs.

    A subclass calls `build` with its blocks, and has `embed` and `decode`.

    Args:
        label_dim: number of classes; 0 for an unconditional network.
        label_dropout: probability with which labels are dropped in training.
        augment_dim: length of augmentation labels; 0 for none.
    """

    def __init__(self, *, label_dim: int, label_dropout: float, augment_dim: int = 0) -> None:
        super().__init__()
        self.label_dim, self.label_dropout, self.augment_dim = label_dim, label_dropout, augment_dim
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.register_load_state_dict_pre_hook(pop_filters)

    def build(
        self,
        levels: list[Level],
        stem: nn.Conv2d,
        block: Callable[..., UNetBlock],
        *,
        num_blocks: int,
        attends_last: bool,
    ) -> None:
        """Fill `enc` and `dec`.

        Args:
            levels: from the highest resolution down.
            stem: the first convolution.
            block: builds a block, called as `UNetBlock`.
            num_blocks: per level of the encoder; the decoder has one more.
            attends_last: whether, in the decoder, only the last block of a level attends.

        Raises:
            ValueError: num_blocks is below 1.
        """
        if num_blocks < 1:
            raise ValueError(f"num_blocks {num_blocks}: expected at least 1")
        self.enc[f"{levels[0].name}_conv"] = stem
        outputs = [stem.out_channels]  # channels of the encoder's outputs
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
        """Return modules, by name, that add the downsampled image to a lower level of so many channels."""
        return {}

    def image_out(self, level: Level, *, first: bool, last: bool) -> Mapping[str, nn.Module]:
        """Return modules, by name, that map a decoder level's output to the image; first and last as in `enc`."""
        return {}

    def forward(self, x: Tensor, noise: Tensor, cond: LabelCondition | None = None) -> Tensor:
        """Return F (B out_channels H W) of x (B C H W) at noise levels (B). ValueError for labels of other classes."""
        emb = self.embed(noise, self.labels(cond), self.augment(cond))
        return self.decode(self.encode(x, emb), emb)

    @property
    def feature_layers(self) -> list[str]:
        """The layers whose output a discriminator judges: the end of the encoder, at the lowest resolution."""
        return [f"enc.{list(self.enc)[-1]}"]

    def labels(self, cond: LabelCondition | None) -> Tensor | None:
        """Return one-hot labels, some of them dropped in training; None for an unconditional network."""
        given = cond.one_hot.shape[1] if cond is not None else 0
        if given != self.label_dim:
            raise ValueError(f"labels of {given} classes, this network was built for {self.label_dim}")
        if cond is None or not (self.training and self.label_dropout):
            return cond.one_hot if cond is not None else None
        return cond.one_hot * (torch.rand_like(cond.one_hot[:, :1]) >= self.label_dropout)

    def augment(self, cond: LabelCondition | None) -> Tensor | None:
        """Return the augmentation labels (B augment_dim); None without."""
        augment: Tensor | None = getattr(cond, "augment", None)
        if augment is not None and augment.shape[1] != self.augment_dim:
            raise ValueError(f"{augment.shape[1]} augmentation labels, this network was built for {self.augment_dim}")
        return augment

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the blocks' embedding (B emb_channels) of noise levels, labels and augmentation labels."""
        raise NotImplementedError

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the encoder's outputs, in order."""
        stem, *blocks = self.enc.values()
        outputs = [stem(x)]
        for block in blocks:
            outputs.append(block(outputs[-1], emb))
        return outputs

    def decode(self, outputs: list[Tensor], emb: Tensor) -> Tensor:
        """Return F (B out_channels H W) from the encoder's outputs."""
        raise NotImplementedError


def concat_skip(x: Tensor, outputs: list[Tensor], block: nn.Module) -> Tensor:
    """Append the channels of the last unused output of the encoder to x, for a block that takes both."""
    return torch.cat([x, outputs.pop()], dim=1) if x.shape[1] != block.in_channels else x


def pop_filters(network: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Remove the resampling filters from a published checkpoint's state dict; an error where the network has others."""
    errors: list[str] = rest[-1]
    ours = next((module.taps for module in network.modules() if isinstance(module, Resample)), None)
    for name in [name for name in state if name.startswith(prefix) and is_filter(name)]:
        theirs = state.pop(name)
        if ours is None or theirs.shape != ours.shape or not torch.allclose(theirs.to(ours), ours):
            errors.append(f"{name} is not the resample_filter that this network was built with")
