"""One configuration per command: every field is a flag, and the words below it its help. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

__all__ = [
    "Bench",
    "Classifier",
    "Convert",
    "Distill",
    "Evaluate",
    "Export",
    "Info",
    "Machine",
    "MakePairs",
    "Network",
    "Plan",
    "Reproduce",
    "Sample",
    "Solver",
    "Teach",
]


@dataclass(frozen=True)
class Network:
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
class Machine:
    """Where and how to compute."""

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes cuda where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What networks compute in; auto takes bf16 where the hardware is faster in it. Weights and losses stay fp32."""
    threads: int = 0
    """CPU threads; 0 for all. With 1 the same seed gives the same student, bit for bit."""


@dataclass(frozen=True)
class Teach:
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
    network: Network = field(default_factory=Network)
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
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Solver:
    """The teacher's ODE solver."""

    solver: Literal["heun", "ddim", "pndm"] | None = None
    """heun: 2 steps - 1 evaluations per image; ddim: steps; pndm: steps + 1. The teacher's own where none is given."""
    solver_steps: int | None = None
    """Its steps; the teacher's own where none are given."""
    guidance: float | None = None
    """Scale of classifier-free guidance, in the pairs and in mu_real; 1 is none, and usual."""


@dataclass(frozen=True)
class MakePairs:
    """Make noise-image pairs by the teacher's deterministic ODE solver (section 3.3 of the paper)."""

    teacher: str = "fashion"
    """A bundled or published name, a folder, a .pkl of EDM, a hub id of diffusers, or module:function."""
    prompts: str | None = None
    """What a text-to-image teacher is told: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    out: Path = Path("pairs/fashion")
    """Folder to write, or to go on with."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
    count: int = 10000
    """Pairs to make."""
    shard_size: int = 2000
    """Pairs per file."""
    batch: int = 500
    """Pairs made at once."""
    compile: bool = False
    """Compile the network by torch.compile: a minute at first, then faster on a GPU."""
    seed: int = 0
    """Seed of noise and labels."""
    ode: Annotated[Solver, OmitArgPrefixes] = field(default_factory=Solver)
    """The teacher's ODE solver."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Distill:
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
    ode: Annotated[Solver, OmitArgPrefixes] = field(default_factory=Solver)
    """The teacher's ODE solver."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Plan(Distill):
    """Say what a distillation takes before it is begun: memory, operations, hours. All flags of `distill` apply."""

    processes: int = 1
    """Processes, one per device, among which batches and drawing are divided; --strategy says what each holds."""
    peak_tflops: float | None = None
    """What a device could compute at best, 1e12 operations per second; without it a few steps are timed here."""
    utilisation: float = 0.3
    """Share of --peak-tflops that is reached: measure it, as it differs between networks and devices."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a teacher or a student."""

    model: Positional[str]
    """A model's name (fashion, fashion-student, edm-cifar10-32x32-cond-vp ...), its folder or run, or a .pkl of EDM."""
    out: Path = Path("samples.png")
    """Picture to write."""
    count: int = 64
    """Images."""
    columns: int = 8
    """Images per row of the picture."""
    labels: tuple[int, ...] = ()
    """Classes to draw, repeated as needed; all in turn where none are given."""
    prompt: tuple[str, ...] = ()
    """What a text-to-image model is told: one prompt or more, repeated as needed."""
    prompts: str | None = None
    """Their source: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    seed: int = 0
    """Seed of the noise."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Evaluate:
    """Measure the quality of a model's images, or of a set of images, and a model's speed."""

    model: Positional[str]
    """A model as of `sample`, or a set of images: a folder, a zip, CIFAR-10's or Fashion-MNIST's official files."""
    reference: str | None = None
    """Real images to compare with: such a set, EDM's statistics (.npz), or model:NAME for what a teacher draws."""
    metrics: str | None = None
    """fid, kid, precision, recall, density, coverage, is, clip, frechet (in a judge's features), with commas."""
    judge: str | None = None
    """Judge whose features measure in Inception's place: a name (fashion-classifier) or a folder."""
    inception: Path | None = None
    """Inception's file, inception-2015-12-05.pt; looked for in $DMDISTILL_ASSETS and the cache, else downloaded."""
    clip: str | None = None
    """CLIP model of transformers', a folder or a hub id; the paper's is laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."""
    resizing: Literal["tensorflow", "clean"] = "tensorflow"
    """To Inception's 299 pixels: as FID is reported for CIFAR-10 and ImageNet, or as clean-fid does for COCO."""
    prompts: str | None = None
    """What a text-to-image model is told: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    images: int | None = None
    """Images to draw, 10000 where no number is given; of a set of images the first so many, else all."""
    batch: int | None = None
    """Images drawn at once; where no number is given 500 small ones, fewer large ones."""
    side: int | None = None
    """Pixels on a side that all images are cut to, square, and brought to by Lanczos: 256 for COCO."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be read."""
    seed: int = 1
    """Seed of the noise."""
    json: Path | None = None
    """File for the figures."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Bench:
    """Measure speed: latency at batch 1, throughput at the best batch, a student's beside its teacher's."""

    model: Positional[str]
    """A student, timed beside its teacher, or a teacher, timed alone: a name, or the folder of a model or run."""
    teacher: str | None = None
    """The student's teacher, where its config.json names none that is here."""
    repeats: int = 10
    """Rounds; in each everything is timed in turn."""
    most: int = 1024
    """Largest batch to try, of 1, 2, 4 ..."""
    compile: bool = False
    """Time the networks compiled by torch.compile as well."""
    json: Path | None = None
    """File for the figures."""
    ode: Annotated[Solver, OmitArgPrefixes] = field(default_factory=Solver)
    """The teacher's ODE solver; that of the student's distillation where none is given."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Export:
    """Write a student as a folder that diffusers loads without this package."""

    student: Positional[str]
    """fashion-student, or the folder of a student or run."""
    out: Positional[Path]
    """Folder to make."""
    format: Literal["diffusers"] = "diffusers"
    """What to write."""
    push_to_hub: str | None = None
    """Repository of the hub (owner/name) to upload it to as well; log in first by `hf auth login`."""


@dataclass(frozen=True)
class Info:
    """Say what a model is, or where a run stands."""

    model: Positional[str]
    """A model's name (fashion, fashion-student, edm-cifar10-32x32-cond-vp ...), its folder or run, or a .pkl of EDM."""


@dataclass(frozen=True)
class Convert:
    """Write a teacher, a checkpoint of EDM say, as a model's folder."""

    model: Positional[str]
    """A checkpoint of EDM (.pkl), a published name, or the folder of a teacher of our own networks."""
    out: Positional[Path]
    """Folder to write, which must be empty or new."""
    store: Literal["fp32", "fp16"] = "fp32"
    """How the weights are stored."""


@dataclass(frozen=True)
class Classifier:
    """Train the small classifier in whose features the Frechet distance is measured."""

    data: Path = Path("datasets/fashion-mnist")
    """Folder of Fashion-MNIST's official .gz files, or of CIFAR-10's."""
    out: Path = Path("runs/classifier")
    """Folder to write."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
    epochs: int = 8
    """Passes over the training images."""
    batch: int = 256
    """Images per step."""
    lr: float = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    seed: int = 0
    """Seed of every random draw."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""


@dataclass(frozen=True)
class Reproduce:
    """Repeat an experiment of the paper at small size: a picture and a table, with error bars over seeds."""

    what: Positional[Literal["fig3", "fig4", "ablation", "weighting"]]
    """fig3: what each loss is for, on two modes; fig4: why to diffuse; ablation: table 2; weighting: table 3."""
    out: Path = Path("runs/reproduce")
    """Folder for the picture and the table."""
    seeds: int = 5
    """Repetitions with other random draws, over which the error bars are taken."""
    steps: int | None = None
    """Updates of each training; the experiment's own where none are given."""
    guidance: float | None = None
    """Of ablation and weighting: scale of classifier-free guidance; 1 is none, and usual."""
    start: str | None = None
    """Of ablation and weighting: a student that all rows begin as; the teacher itself where none is given."""
    machine: Annotated[Machine, OmitArgPrefixes] = field(default_factory=Machine)
    """Where and how to compute."""
