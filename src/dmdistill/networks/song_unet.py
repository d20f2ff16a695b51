"""SongUNet: the U-Nets of DDPM++ and NCSN++ (Song et al. 2021) as EDM (Karras et al. 2022) arranges them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.networks.edm_unet import LabelCondition, Level, UNet, concat_skip, plan_levels
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

SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two branches
BLOCK = {"heads": 1, "skip_scale": SKIP_SCALE, "project_resampled": True, "adaptive_scale": False}
GAINS = {
    "conv1": 1e-5,
    "proj": 1e-5,
    "aux_conv": 1e-5,
    "qkv": math.sqrt(0.2),
}  # of the initialisation, by the end of a layer's name
EMBEDDINGS = {"positional": PositionalEmbedding, "fourier": FourierEmbedding}
CHOICES = {
    "embedding_type": tuple(EMBEDDINGS),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


class SongUNet(UNet):
    """The network F(x, noise, cond) of DDPM++ and NCSN++ (Karras et al. 2022, appendix F), with EDM's arguments.

    Args:
        img_resolution: height and width in pixels; halved at each further level of `channel_mult`.
        in_channels: of the input.
        out_channels: of the output.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: length of the augmentation labels (9 in EDM), which are zero outside training.
        model_channels: of a level with multiplier 1.
        channel_mult: multiplier of each level.
        channel_mult_emb: multiplier of the blocks' embedding.
        num_blocks: per level.
        attn_resolutions: the resolutions whose blocks attend.
        dropout: probability in the blocks.
        label_dropout: probability with which labels are dropped in training.
        embedding_type: of the noise level: "positional" in DDPM++, "fourier" in NCSN++.
        channel_mult_noise: multiplier of the embedding of the noise level.
        encoder_type: "standard" in DDPM++; "residual" in NCSN++, with the downsampled image at each level; "skip".
        decoder_type: "standard", or "skip" for an image at each level, whose sum is the output.
        resample_filter: [1, 1] in DDPM++, [1, 3, 3, 1] in NCSN++.
        group_channels: minimum of channels per normalisation group. The published networks have 4; with 16, PyTorch's
            CPU kernel for channels_last and bf16 is an order of magnitude faster.
        patch_size: pixels on a side of the patches that become channels of the input; 1 in the published networks.
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
        levels = plan_levels(
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
        common = {"emb_channels": emb_channels, "dropout": dropout, "norm": self.norm}
        block = partial(UNetBlock, **common, resample_filter=resample_filter, **BLOCK)
        stem = convolution(self.image_channels, model_channels)
        self.build(levels, stem, block, num_blocks=num_blocks, attends_last=True)
        self.initialise()

    def image_in(self, level: Level, channels: int) -> dict[str, nn.Module]:
        """Return modules that add the downsampled image to a level of the encoder."""
        if self.encoder_type == "standard":
            return {}
        if self.encoder_type == "skip":
            return {
                f"{level.name}_aux_down": Resample("down", self.resample_filter),
                f"{level.name}_aux_skip": convolution(self.image_channels, channels, kernel=1),
            }
        down = ConvolutionDown(self.image_channels, channels, self.resample_filter)
        self.image_channels = channels  # the next level downsamples this level's output
        return {f"{level.name}_aux_residual": down}

    def image_out(self, level: Level, *, first: bool, last: bool) -> dict[str, nn.Module]:
        """Return modules that map a decoder level's output to the image."""
        if not first and self.decoder_type == "standard":
            return {}
        up = {} if last or self.decoder_type == "standard" else {"aux_up": Resample("up", self.resample_filter)}
        head = {"aux_norm": self.norm(level.width), "aux_conv": convolution(level.width, self.out_channels)}
        return {f"{level.name}_{name}": module for name, module in (up | head).items()}

    def initialise(self) -> None:
        """Initialise: Xavier-uniform weights, zero biases, and nearly zero in the last layer of each branch."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
                nn.init.xavier_uniform_(module.weight, gain=gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: LabelCondition | None = None) -> Tensor:
        """Return F (B out_channels H W) of x (B in_channels H W) at noise levels (B)."""
        return F.pixel_shuffle(super().forward(F.pixel_unshuffle(x, self.patch_size), noise, cond), self.patch_size)

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the blocks' embedding (B emb_channels)."""
        emb = self.map_noise(noise)
        if labels is not None and self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if augment is not None and self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the encoder's outputs, in order."""
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
        """Return F from the encoder's outputs."""
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
                    x = module(concat_skip(x, outputs, module), emb)
        return image


def check_choices(**given: str) -> None:
    """Raise ValueError where an argument is none of its choices."""
    for name, choice in given.items():
        if choice not in CHOICES[name]:
            raise ValueError(f"{name} {choice!r}: expected one of {', '.join(CHOICES[name])}")
