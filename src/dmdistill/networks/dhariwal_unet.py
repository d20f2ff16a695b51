"""DhariwalUNet: the U-Net of ADM (Dhariwal & Nichol 2021) as EDM (Karras et al. 2022) arranges it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.networks.edm_unet import UNet, concat_skip, plan_levels
from dmdistill.networks.layers import PositionalEmbedding, convolution, group_norm
from dmdistill.networks.residual_block import UNetBlock

__all__ = ["DhariwalUNet"]


class DhariwalUNet(UNet):
    """The network F(x, noise, cond) of ADM (Karras et al. 2022, appendix F), with EDM's arguments.

    Args:
        img_resolution: height and width in pixels; halved at each further level of `channel_mult`.
        in_channels: of the input.
        out_channels: of the output.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: length of the augmentation labels, which are zero outside training.
        model_channels: of a level with multiplier 1.
        channel_mult: multiplier of each level.
        channel_mult_emb: multiplier of the blocks' embedding.
        num_blocks: per level.
        attn_resolutions: the resolutions whose blocks attend, with a head per 64 channels.
        dropout: probability in the blocks.
        label_dropout: probability with which labels are dropped in training.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(label_dim=label_dim, label_dropout=label_dropout, augment_dim=augment_dim)
        levels = plan_levels(img_resolution, model_channels, channel_mult, attn_resolutions=attn_resolutions)
        emb_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None
        norm = partial(group_norm, eps=1e-5)
        block = partial(UNetBlock, emb_channels=emb_channels, dropout=dropout, norm=norm)
        stem = convolution(in_channels, levels[0].width)
        self.build(levels, stem, block, num_blocks=num_blocks, attends_last=False)
        self.out_norm = norm(levels[0].width)
        self.out_conv = convolution(levels[0].width, out_channels)
        self.initialise()

    def initialise(self) -> None:
        """Initialise as PyTorch does, but labels with unit variance, and the last layer of each branch with zero."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[0].endswith(("conv1", "proj", "out_conv", "map_augment")):
                nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the blocks' embedding (B emb_channels)."""
        emb = self.map_noise(noise)
        emb = emb.roll(emb.shape[1] // 2, dims=1)  # ADM has the cosines first
        if augment is not None and self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if labels is not None and self.map_label is not None:
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def decode(self, outputs: list[Tensor], emb: Tensor) -> Tensor:
        """Return F from the encoder's outputs."""
        x = outputs[-1]
        for block in self.dec.values():
            x = block(concat_skip(x, outputs, block), emb)
        return self.out_conv(F.silu(self.out_norm(x)))
