"""Configuration of `dmdistill distill`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, SolverOptions

__all__ = ["DistillConfig"]


@dataclass(frozen=True)
class DistillConfig:
    """Distill a teacher into a one-step student (Algorithm 1 of Yin et al. 2024)."""

    teacher: str = "fashion"
    """A bundled or published name, a folder, a .pkl of EDM, a hub id of diffusers, or module:function."""
    prompts: str | None = None
    """What a text-to-image teacher is told: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    start: str | None = None
    """A student of this teacher to go on from; without it the generator starts as the teacher."""
    out: Path = Path("runs/distill")
    """Run folder to make; the student is written to its student/."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
    pairs: Path | None = None
    """Folder of pairs made before; without it they are made in the run folder."""
    pair_count: int = 3600
    """Pairs to make where none are given."""
    steps: int = 1000
    """Updates of the generator."""
    batch: int = 64
    """Generated images per step, of all processes, for distribution matching and for the fake score."""
    batch_reg: int = 64
    """Pairs per step, of all processes."""
    accumulate: int = 1
    """Parts in which a process takes its share of a step, one after the other, with one update: less memory."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How processes hold the networks: ddp, each all of them; fsdp, each a share of every weight: less memory."""
    lora_student: int = 0
    """Rank of the student's adapters (LoRA); 0 trains all its weights."""
    lora_fake: int = 0
    """Rank of the fake score's adapters; 0 trains all its weights."""
    checkpointing: Literal["none", "norms", "blocks"] = "norms"
    """What the backward pass computes again: norms, those of our own U-Nets without adapters, for half of the
    activations and a few percent more time; blocks, nearly all, for a third more time."""
    compile: bool = False
    """Compile the networks by torch.compile: minutes at the start, faster steps; losses change by rounding."""
    lr: float = 1e-3
    """Learning rate of the generator, reached after the warm-up."""
    lr_fake: float = 1e-3
    """Learning rate of the fake score."""
    warmup: int = 100
    """Steps until the learning rates are reached."""
    rewarm: bool = False
    """Let the generator's rate rise anew from --match-from, where a loss of another kind begins."""
    decay: bool = True
    """Let the learning rates fall to zero by a cosine."""
    clip: float = 10.0
    """Largest norm of a gradient."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    lambda_reg: float = 1.0
    """Weight of the regression loss (Eq. 9); 0 needs no pairs."""
    lambda_end: float = 1.0
    """Share of lambda_reg that is left at the last step, reached along a line; 1 keeps it all."""
    fake_from: float = 1.0
    """Fraction of the run from which the fake score learns, if before --match-from: best is a little ahead of it."""
    regress_until: float = 1.0
    """Fraction of the run at which the regression ends and distributions are matched alone."""
    match: bool = True
    """Distribution matching (Eq. 7); off leaves regression alone."""
    match_from: float = 0.0
    """Fraction of the run from which distributions are matched; before it regression, where there is any, is alone."""
    match_pairs: bool = False
    """Match the images of the pairs' noise too, x = concat(x, x_ref), as the paper does on LAION."""
    fake_steps: int = 1
    """Updates of the fake score per update of the generator: 1 in DMD, 5 or 10 in DMD2."""
    low: float = 0.02
    """Lower end of the time range of distribution matching, as a fraction."""
    high: float = 0.98
    """Upper end of the time range of distribution matching."""
    weight: Literal["eq8", "sigma", "sigma3"] = "eq8"
    """Weight of the gradient: Eq. 8, or table 3's sigma/alpha and sigma^3/alpha."""
    distance: Literal["auto", "lpips", "huber"] = "auto"
    """Of the regression loss; auto takes LPIPS where --lpips-weights is given, else pseudo-Huber."""
    lpips_weights: Path | None = None
    """Safetensors file of VGG16's features and LPIPS' heads."""
    lpips_side: int = 224
    """Pixels on a side that LPIPS brings images to, 224 in the paper; 0 leaves their size: 49 times less work at 32."""
    decoder: str | None = None
    """Autoencoder (AutoencoderTiny) that makes images of latents for LPIPS; the teacher's own where none is given."""
    halflives: tuple[float, ...] = (50.0, 200.0)
    """Half-lives, in steps, of the averages of the generator; the best by Frechet distance becomes the student."""
    seed: int = 0
    """Seed of every random draw."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    log_to: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Where the figures and samples go beside metrics.jsonl; each is an extra of that name (pip)."""
    sample_every: int = 250
    """Steps between two grids of samples."""
    evaluate_every: int = 250
    """Steps between two measurements of health and quality."""
    evaluate_images: int = 2000
    """Images of such a measurement."""
    report_images: int = 10000
    """Images of the final measurement; 0 leaves the report out."""
    reference: str | None = None
    """Real images, as of `evaluate`: the states on the way are then compared by FID, not by the teacher's judge."""
    keep: Literal["best", "last"] = "best"
    """Which state becomes the student: the best measured on the way, or the last; without a judge it is the last."""
    save_every: int = 500
    """Steps between two checkpoints."""
    store: Literal["fp32", "fp16"] = "fp32"
    """How the student's weights are stored."""
    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint and with its config.toml."""
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """The teacher's ODE solver."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""
