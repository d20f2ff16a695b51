"""SongUNet: the U-Nets of DDPM++ and NCSN++ (Song et al. 2021) as EDM (Karras et al. 2022) arranges them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.networks.edm_unet import HasLabels, Level, UNet, beside, plan
from dmdistill.networks.layers import (
    ConvolutionDown,
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    convolution,
    group_norm,
)
from dmdistill.networks.residual_block import UNetBlock

__all__ = ["SongUNet"]

SKIP_SCALE = math.sqrt(0.5)  # a sum of two unit-variance branches keeps unit variance
GAINS = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}  # of fresh weights, by the name's end
EMBEDDINGS = {"positional": PositionalEmbedding, "fourier": FourierEmbedding}
CHOICES = {
    "embedding_type": tuple(EMBEDDINGS),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


class SongUNet(UNet):
    """DDPM++ and NCSN++: F(x, noise, cond) of Karras et al. (2022), appendix F. The arguments are EDM's.

    Args:
        img_resolution: height and width in pixels; halved at each further level of `channel_mult`.
        in_channels, out_channels: of the image.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: how many numbers say what was done to an image in training (9 in EDM); in use they are zero.
        model_channels: what `channel_mult` multiplies per level, `channel_mult_emb` and `channel_mult_noise` for the
            embedding and for what it is made of.
        attn_resolutions: the resolutions whose blocks attend.
        label_dropout: how often a label is forgotten in training.
        embedding_type: "positional" in DDPM++, "fourier" in NCSN++.
        encoder_type: "standard" in DDPM++, "residual" in NCSN++, where the image, halved, comes in at each level.
        decoder_type: "standard", or "skip" for an image at each level, their sum being the answer.
        resample_filter: [1, 1] in DDPM++, [1, 3, 3, 1] in NCSN++.
        group_channels: least channels per normalisation group. The published networks have 4; with 16, PyTorch's
            CPU kernel for channels_last is an order of magnitude faster.
        patch_size: pixels on a side that become channels at the door; 1 in the published networks.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        group_channels: int = 4,
        patch_size: int = 1,
    ) -> None:
        check_choices(embedding_type=embedding_type, encoder_type=encoder_type, decoder_type=decoder_type)
        super().__init__(label_dim=label_dim, label_dropout=label_dropout, augment_dim=augment_dim)
        levels = plan(
            img_resolution, model_channels, channel_mult, attn_resolutions=attn_resolutions, patch_size=patch_size
        )
        self.patch_size, self.resample_filter = patch_size, resample_filter
        self.encoder_type, self.decoder_type = encoder_type, decoder_type
        self.image_channels, self.out_channels = in_channels * patch_size**2, out_channels * patch_size**2
        self.norm = partial(group_norm, group_channels=group_channels, eps=1e-6)
        noise_channels, emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = EMBEDDINGS[embedding_type](noise_channels)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            heads=1,
            dropout=dropout,
            skip_scale=SKIP_SCALE,
            norm=self.norm,
            resample_filter=resample_filter,
            project_resampled=True,
            adaptive_scale=False,
        )
        stem = convolution(self.image_channels, model_channels)
        self.build(levels, stem, block, num_blocks=num_blocks, attends_last=True)
        self.initialise()

    def image_in(self, level: Level, channels: int) -> dict[str, nn.Module]:
        if self.encoder_type == "standard":
            return {}
        if self.encoder_type == "skip":
            return {
                f"{level.name}_aux_down": Resample("down", self.resample_filter),
                f"{level.name}_aux_skip": convolution(self.image_channels, channels, kernel=1),
            }
        down = ConvolutionDown(self.image_channels, channels, self.resample_filter)
        self.image_channels = channels  # from here on the image is what this level made of it
        return {f"{level.name}_aux_residual": down}

    def image_out(self, level: Level, *, first: bool, last: bool) -> dict[str, nn.Module]:
        if not first and self.decoder_type == "standard":
            return {}
        up = {} if last or self.decoder_type == "standard" else {"aux_up": Resample("up", self.resample_filter)}
        head = {"aux_norm": self.norm(level.width), "aux_conv": convolution(level.width, self.out_channels)}
        return {f"{level.name}_{name}": module for name, module in (up | head).items()}

    def initialise(self) -> None:
        """Xavier-uniform weights, zero biases; what ends a branch, or the network, starts next to zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
                nn.init.xavier_uniform_(module.weight, gain=gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: HasLabels | None = None) -> Tensor:
        return F.pixel_shuffle(super().forward(F.pixel_unshuffle(x, self.patch_size), noise, cond), self.patch_size)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        emb = self.map_noise(noise)
        if labels is not None and self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if augment is not None and self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        outputs, image = [], x
        for name, module in self.enc.items():
            match name.partition("_")[2]:
                case "conv":
                    outputs.append(module(x))
                case "aux_down":
                    image = module(image)
                case "aux_skip":
                    outputs[-1] = outputs[-1] + module(image)
                case "aux_residual":
                    outputs[-1] = image = (outputs[-1] + module(image)).mul_(SKIP_SCALE)
                case _:
                    outputs.append(module(outputs[-1], emb))
        return outputs

    def decode(self, outputs: list[Tensor], emb: Tensor) -> Tensor:
        x = outputs[-1]
        image = normed = x.new_zeros(())
        for name, module in self.dec.items():
            match name.partition("_")[2]:
                case "aux_up":
                    image = module(image)
                case "aux_norm":
                    normed = F.silu(module(x))
                case "aux_conv":
                    image = image + module(normed)
                case _:
                    x = module(beside(x, outputs, module), emb)
        return image


def check_choices(**given: str) -> None:
    """ValueError where an architecture's part is none that there is."""
    for name, choice in given.items():
        if choice not in CHOICES[name]:
            raise ValueError(f"{name} {choice!r}: expected one of {', '.join(CHOICES[name])}")
