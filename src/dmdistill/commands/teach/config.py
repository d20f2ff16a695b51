"""Configuration of `dmdistill teach`: one group of options a concern."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, require, require_at_least, require_positive

__all__ = [
    "NetworkOptions",
    "TeachConfig",
    "TeachDataOptions",
    "TeachNoiseOptions",
    "TeachOptimizerOptions",
    "TeachOutputOptions",
    "TextOptions",
]


@dataclass(frozen=True)
class NetworkOptions:
    """The U-Net of the teacher: DDPM++, or diffusers' UNet2DModel or UNet2DConditionModel."""

    model_channels: int = 48
    """Channels at full resolution."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Multiples of the channels at each level; each further level halves height and width."""
    num_blocks: int = 1
    """Residual blocks per level."""
    attn_resolutions: tuple[int, ...] = ()
    """Resolutions with attention, of latents for stable-diffusion, beside those that always have it."""
    group_channels: int = 16
    """Fewest channels per normalization group; 16 is far faster on CPUs than the 4 of EDM."""
    patch_size: int = 2
    """Side of the patches that the first layer turns into channels, in pixels; for edm only."""
    dropout: float = 0.0
    """Dropout in training; distillation uses none."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "model_channels", "channel_mult", "num_blocks", "group_channels", "patch_size")
        require(self, "from 0 to below 1", lambda share: 0 <= share < 1, "dropout")


@dataclass(frozen=True)
class TextOptions:
    """The autoencoder and the text encoder, of stable-diffusion only."""

    autoencoder_channels: int = 32
    """Channels of the autoencoder at every resolution."""
    autoencoder_steps: int = 2500
    """Training steps of the autoencoder, which is trained first."""
    text_channels: int = 64
    """Channels of the text encoder, of which each of four heads has a quarter."""
    text_layers: int = 2
    """Layers of the text encoder."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "autoencoder_channels", "autoencoder_steps", "text_channels", "text_layers")
        require(self, "a multiple of 4", lambda channels: channels % 4 == 0, "text_channels")


@dataclass(frozen=True)
class TeachOptimizerOptions:
    """AdamW, the learning-rate schedule and the EMA that becomes the teacher."""

    lr: float = 2e-3
    """Learning rate, reached after the warm-up; decays to zero by a cosine."""
    warmup: int = 500
    """Warm-up steps of the learning rate."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; larger ones are clipped."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Betas of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    ema_halflife: float = 1000.0
    """Half-life, in steps, of the EMA of the weights, which becomes the teacher."""
    compile: bool = False
    """Compile the network by torch.compile: a minute or two at first, then faster on a GPU."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_positive(self, "lr", "grad_clip", "ema_halflife")
        require_at_least(self, 0, "warmup", "weight_decay")
        require(self, "numbers from 0 to below 1", lambda beta: 0 <= beta < 1, "betas")


@dataclass(frozen=True)
class TeachNoiseOptions:
    """The noise levels in training, of edm only."""

    p_mean: float = -1.2
    """Mean of ln sigma."""
    p_std: float = 1.2
    """Standard deviation of ln sigma."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_positive(self, "p_std")


@dataclass(frozen=True)
class TeachDataOptions:
    """What is made of images and labels in training."""

    side: int | None = None
    """Side in pixels. All images are cropped to the square in the middle and resized by Lanczos."""
    label_dropout: float = 0.1
    """Share of samples trained without their label, which makes classifier-free guidance possible."""
    mirror: bool = False
    """Flip half of the images horizontally."""
    augment: float = 0.0
    """Probability of each of EDM's augmentations (0.12 in EDM), which condition the network; they flip images too."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require(self, "from 0 to 1", lambda share: 0 <= share <= 1, "label_dropout", "augment")
        require(self, "from 4 to 4096", lambda side: 4 <= side <= 4096, "side")


@dataclass(frozen=True)
class TeachOutputOptions:
    """What a run logs and keeps."""

    log_every: int = 100
    """Steps between two rows of metrics.jsonl."""
    log_to: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Logger of metrics and samples beside metrics.jsonl; each is an extra of that name (pip)."""
    sample_every: int = 0
    """Steps between two sample grids of the EMA; 0 for one at the end only."""
    save_every: int = 1000
    """Steps between two checkpoints."""
    save_dtype: Literal["fp32", "fp16"] = "fp32"
    """Dtype in which the teacher's weights are stored."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "log_every", "save_every")
        require_at_least(self, 0, "sample_every")


@dataclass(frozen=True)
class TeachConfig:
    """Train a teacher by denoising score matching."""

    data: Path = Path("datasets/fashion-mnist")
    """Images: a folder or zip of images, the files of CIFAR-10's binary version, or IDX files as of Fashion-MNIST.
    Images have the classes of their folders or of EDM's dataset.json; without any the teacher is unconditional."""
    out: Path = Path("runs/teacher")
    """Run folder to make; the teacher is written to its teacher/."""
    preset: str = ""
    """Preset to start from, or a .toml file of your own; the other flags change it."""
    kind: Literal["edm", "ddpm", "stable-diffusion"] = "edm"
    """Kind of teacher: edm is our U-Net with EDM's preconditioning; ddpm is diffusers' UNet2DModel; stable-diffusion is
    a small StableDiffusionPipeline, for images with captions."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What a ddpm teacher predicts: the noise, or v, which is far easier to distill."""
    steps: int = 9000
    """Training steps."""
    batch: int = 128
    """Images per step."""
    seed: int = 0
    """Seed of every random draw."""
    resume: Path | None = None
    """Run folder to resume, from its newest checkpoint and with its config.toml."""
    network: Annotated[NetworkOptions, OmitArgPrefixes] = field(default_factory=NetworkOptions)
    text: Annotated[TextOptions, OmitArgPrefixes] = field(default_factory=TextOptions)
    optimizer: Annotated[TeachOptimizerOptions, OmitArgPrefixes] = field(default_factory=TeachOptimizerOptions)
    noise: Annotated[TeachNoiseOptions, OmitArgPrefixes] = field(default_factory=TeachNoiseOptions)
    augmentation: Annotated[TeachDataOptions, OmitArgPrefixes] = field(default_factory=TeachDataOptions)
    output: Annotated[TeachOutputOptions, OmitArgPrefixes] = field(default_factory=TeachOutputOptions)
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "steps", "batch")
