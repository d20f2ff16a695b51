"""Configuration of `dmdistill teach`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions

__all__ = ["NetworkOptions", "TeachConfig"]


@dataclass(frozen=True)
class NetworkOptions:
    """The U-Net of a teacher trained here: DDPM++, or diffusers' UNet2DModel."""

    model_channels: int = 48
    """Channels at full resolution."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Their multiple at each level; each further level halves height and width."""
    num_blocks: int = 1
    """Residual blocks per level."""
    attn_resolutions: tuple[int, ...] = ()
    """Resolutions whose blocks attend, beside the first block of the lowest level's way up."""
    group_channels: int = 16
    """Least channels per normalisation group; 16 is far faster than EDM's 4 on CPUs."""
    patch_size: int = 2
    """Pixels on a side that become channels at the network's door; 1 for ddpm."""
    dropout: float = 0.0
    """Share of features forgotten in training; distillation forgets none."""


@dataclass(frozen=True)
class TeachConfig:
    """Train a teacher by denoising score matching."""

    kind: Literal["edm", "ddpm"] = "edm"
    """edm: our U-Net with EDM's preconditioning; ddpm: diffusers' UNet2DModel on DDPM's linear schedule."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """Of ddpm alone: the noise, or v, which is far easier to distill: the noise of pure noise shows no image."""
    data: Path = Path("datasets/fashion-mnist")
    """Folder of Fashion-MNIST's official .gz files, or of CIFAR-10's."""
    out: Path = Path("runs/teacher")
    """Run folder to make; the teacher is written to its teacher/."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """The network's size."""
    steps: int = 9000
    """Training steps."""
    batch: int = 128
    """Images per step."""
    lr: float = 2e-3
    """Learning rate, reached after the warm-up; falls to zero by a cosine."""
    warmup: int = 500
    """Steps until the learning rate is reached."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    halflife: float = 1000.0
    """Half-life, in steps, of the average of the weights that becomes the teacher."""
    p_mean: float = -1.2
    """Mean of ln sigma in training; of edm alone."""
    p_std: float = 1.2
    """Standard deviation of ln sigma in training; of edm alone."""
    label_dropout: float = 0.1
    """Share of samples trained without their label, which makes guidance possible."""
    mirror: bool = False
    """Exchange left and right in half of the images."""
    augment: float = 0.0
    """Probability of each of EDM's changes to an image, of which the network is told (EDM: 0.12); mirrors too."""
    compile: bool = False
    """Compile the network by torch.compile: a minute or two at first, then faster on a GPU."""
    seed: int = 0
    """Seed of every random draw."""
    log_every: int = 100
    """Steps between two lines of metrics.jsonl."""
    log_to: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Where the figures and samples go beside metrics.jsonl; each is an extra of that name (pip)."""
    save_every: int = 1000
    """Steps between two checkpoints."""
    sample_every: int = 0
    """Steps between two grids of samples of the average; 0 for one at the end alone."""
    store: Literal["fp32", "fp16"] = "fp32"
    """How the teacher's weights are stored."""
    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint and with its config.toml."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""
