"""Configuration of `dmdistill distill`: one group of options a concern."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.distill.matching_options import MatchingOptions
from dmdistill.commands.distill.memory_options import MemoryOptions
from dmdistill.commands.distill.method_options import (
    METHODS,
    FakeScoreOptions,
    GanOptions,
    ScoreOptions,
    StudentOptions,
    check_method,
    unused_options,
)
from dmdistill.commands.options import (
    ComputeOptions,
    ImageSizeOptions,
    SolverOptions,
    flag_name,
    option_values,
    require,
    require_at_least,
    require_name,
    require_positive,
)

__all__ = [
    "CheckpointOptions",
    "DistillConfig",
    "EvaluationOptions",
    "FakeScoreOptions",
    "GanOptions",
    "LoggingOptions",
    "MatchingOptions",
    "MemoryOptions",
    "OptimizerOptions",
    "PairOptions",
    "RegressionOptions",
    "ScoreOptions",
    "StudentOptions",
]

DISTANCES = ("auto", "lpips", "huber")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW, the learning-rate schedule and the EMA of the generator."""

    lr: float = 1e-5
    """Learning rate of the generator, reached after the warm-up."""
    warmup: int = 500
    """Warm-up steps of the learning rates."""
    rewarm: bool = False
    """Warm the generator's learning rate up again at --match-from, where a loss of another kind begins."""
    lr_decay: bool = False
    """Decay the learning rates to zero by a cosine."""
    grad_clip: float = 10.0
    """Largest norm of a gradient; larger ones are clipped."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW. Losses are means over pixels: divide the epsilon of a recipe that sums by their number."""
    ema_halflives: tuple[float, ...] = (500.0, 2000.0)
    """Half-lives, in steps, of the generator's EMAs, each at most a tenth of the steps so far; the best EMA becomes the
    student. Without any, the generator itself does."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_positive(self, "lr", "grad_clip", "ema_halflives", "adam_eps")
        require_at_least(self, 0, "warmup", "weight_decay")
        require(self, "numbers from 0 to below 1", lambda beta: 0 <= beta < 1, "betas")
        if len(set(self.ema_halflives)) < len(self.ema_halflives):
            raise ValueError(f"--ema-halflives {' '.join(map(str, self.ema_halflives))}, expected each once")


@dataclass(frozen=True)
class RegressionOptions:
    """The regression on noise-image pairs of the teacher's ODE solver (Eq. 9)."""

    lambda_reg: float = 0.25
    """Weight of the regression loss; 0 needs no pairs."""
    lambda_end: float = 1.0
    """Share of lambda-reg that is left at the last step, reached linearly."""
    regress_until: float = 1.0
    """Fraction of the run at which the regression ends; after it distribution matching is the only loss."""
    batch_reg: int = 32
    """Pairs per step, over all processes."""
    distance: str = "auto"
    """Distance: lpips, huber, or your own as module:function; auto is LPIPS with --lpips-weights, else pseudo-Huber."""
    lpips_weights: Path | None = None
    """File of LPIPS' weights. By default it is looked for in $DMDISTILL_ASSETS and the cache, else downloaded."""
    lpips_side: int = 224
    """Resolution at which LPIPS compares images, 224 in the paper; 0 keeps their own, with 49 times less work at 32."""
    lpips_pooling: Literal["max", "l2"] = "max"
    """Pooling in LPIPS' VGG16: max as published, or l2 as in the code of DMD's authors."""
    decoder: str | None = None
    """Autoencoder (AutoencoderTiny) that decodes latents for LPIPS. The default is the teacher's own."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 0, "lambda_reg", "lambda_end")
        require_at_least(self, 1, "batch_reg")
        require(self, "at least 16, or 0 for the images' own", lambda side: side == 0 or side >= 16, "lpips_side")
        require_name(self, "distance", DISTANCES)
        if self.decoder is not None and not self.uses_lpips:
            raise ValueError(f"--decoder {self.decoder} is for LPIPS, expected --distance lpips with it")

    @property
    def uses_lpips(self) -> bool:
        """Whether the distance is LPIPS."""
        return self.distance == "lpips" or (self.distance == "auto" and self.lpips_weights is not None)


@dataclass(frozen=True)
class PairOptions:
    """The noise-image pairs."""

    pairs: Path | None = None
    """Folder of pairs made by `dmdistill pairs`. Without it they are made in the run folder."""
    pair_count: int = 10000
    """Pairs to make where no folder is given."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How good the student is, during the run and at its end."""

    evaluate_every: int = 1000
    """Steps between two measurements of quality and of the run's health."""
    evaluate_images: int = 2000
    """Images of such a measurement."""
    report_images: int = 1000
    """Images of the final report; 0 skips it."""
    reference: str | None = None
    """Real images, as for `dmdistill evaluate`, at the teacher's resolution; checkpoints are ranked by FID to them."""
    keep: Literal["best", "last"] = "best"
    """Checkpoint that becomes the student: the best that was measured, or the last; without a measurement the last."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "evaluate_every")
        require_at_least(self, 2, "evaluate_images")
        require(self, "at least 2, or 0 for no report", lambda count: count == 0 or count >= 2, "report_images")


@dataclass(frozen=True)
class LoggingOptions:
    """What a run logs beside its checkpoints."""

    log_every: int = 50
    """Steps between two rows of metrics.jsonl."""
    log_to: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Logger of metrics and samples beside metrics.jsonl; each is an extra of that name (pip)."""
    sample_every: int = 500
    """Steps between two sample grids."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "log_every", "sample_every")


@dataclass(frozen=True)
class CheckpointOptions:
    """What a run keeps on disk."""

    save_every: int = 500
    """Steps between two checkpoints."""
    save_dtype: Literal["fp32", "fp16"] = "fp32"
    """Dtype in which the student's weights are stored."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "save_every")


@dataclass(frozen=True)
class DistillConfig:
    """Distill a teacher into a student of one or few steps, by DMD (Yin et al. 2024) or another --method."""

    teacher: str = "fashion"
    """Teacher: a bundled or published name, a folder, a .pkl of EDM, a .safetensors or hub id, or module:function."""
    prompts: str | None = None
    """Prompts of a text-to-image teacher: a .txt of one a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    out: Path = Path("runs/distill")
    """Run folder to make; the student is written to its student/."""
    preset: str = ""
    """Preset to start from, or a .toml file of your own; the other flags change it."""
    steps: int = 10000
    """Updates of the generator."""
    batch: int = 32
    """Generated images per step, over all processes, for distribution matching and for the fake score."""
    method: str = "dmd"
    """Method: dmd, dmd2, f-distill, sid, sida, decoupled-dmd; or your own, (generator, real, fake) -> Objective."""
    start: str | None = None
    """Student of this teacher to start from. Without it the generator starts as the teacher."""
    seed: int = 0
    """Seed of every random draw."""
    resume: Path | None = None
    """Run folder to resume, from its newest checkpoint and with its config.toml."""
    student: Annotated[StudentOptions, OmitArgPrefixes] = field(default_factory=StudentOptions)
    optimizer: Annotated[OptimizerOptions, OmitArgPrefixes] = field(default_factory=OptimizerOptions)
    fake_score: Annotated[FakeScoreOptions, OmitArgPrefixes] = field(default_factory=FakeScoreOptions)
    matching: Annotated[MatchingOptions, OmitArgPrefixes] = field(default_factory=MatchingOptions)
    score: Annotated[ScoreOptions, OmitArgPrefixes] = field(default_factory=ScoreOptions)
    gan: Annotated[GanOptions, OmitArgPrefixes] = field(default_factory=GanOptions)
    regression: Annotated[RegressionOptions, OmitArgPrefixes] = field(default_factory=RegressionOptions)
    pair_set: Annotated[PairOptions, OmitArgPrefixes] = field(default_factory=PairOptions)
    image_size: Annotated[ImageSizeOptions, OmitArgPrefixes] = field(default_factory=ImageSizeOptions)
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    memory: Annotated[MemoryOptions, OmitArgPrefixes] = field(default_factory=MemoryOptions)
    evaluation: Annotated[EvaluationOptions, OmitArgPrefixes] = field(default_factory=EvaluationOptions)
    logging: Annotated[LoggingOptions, OmitArgPrefixes] = field(default_factory=LoggingOptions)
    checkpoint: Annotated[CheckpointOptions, OmitArgPrefixes] = field(default_factory=CheckpointOptions)
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)

    def check(self) -> None:
        """Raise a ValueError where options contradict each other."""
        require_at_least(self, 1, "steps", "batch")
        require_name(self, "method", tuple(METHODS))
        self.check_guidance_and_ida()
        if self.method in METHODS:
            check_method(self.method, option_values(self), option_values(type(self)()))
        self.check_first_steps()
        lambda_reg = self.regression.lambda_reg
        if lambda_reg > 0 and self.pair_set.pairs is None and self.pair_set.pair_count < 1:
            raise ValueError(
                f"--pair-count {self.pair_set.pair_count} with --lambda-reg {lambda_reg}, which needs pairs: give "
                "--pairs FOLDER or a --pair-count above 0, or set --lambda-reg 0 to distill without"
            )
        if lambda_reg == 0 and not self.matching.match:
            raise ValueError("--lambda-reg 0 with --no-match leaves no loss: keep one of the two")
        least = self.matching.match_from if self.matching.match else 1  # a step must have a loss
        expected = f"from {least} to 1, so that every step has a loss"
        require(self.regression, expected, lambda value: least <= value <= 1, "regress_until")

    def check_first_steps(self) -> None:
        """Raise a ValueError where the generator, or its adversarial loss, would never begin."""
        for group, name in ((self.score, "generator_from"), (self.gan, "gan_from")):
            if (first := getattr(group, name)) >= self.steps:
                raise ValueError(
                    f"{flag_name(name)} {first} with --steps {self.steps}: it would never begin, expected a step below "
                    f"{self.steps}"
                )

    @staticmethod
    def unused_options(method: str) -> set[str]:
        """Return the options that a method does not use, as those that a preset for another method may set."""
        return unused_options(method)

    def check_guidance_and_ida(self) -> None:
        """Raise a ValueError where nothing is matched, or the fake score and the student train other weights."""
        ida, memory, matching = self.fake_score.ida, self.memory, self.matching
        options = {"--ida": ida, "--real-guidance": matching.real_guidance, "--guidance-cap": matching.guidance_cap}
        if not matching.match and (given := [flag for flag, value in options.items() if value]):
            raise ValueError(f"{given[0]} with --no-match, which matches no distributions: leave it out")
        if ida and memory.lora_student != memory.lora_fake:
            raise ValueError(
                f"--ida {ida:g} with --lora-student {memory.lora_student} and --lora-fake {memory.lora_fake}, expected "
                "the same rank of both: the fake score moves towards the student's weights"
            )
