"""The methods of distillation by name, and the options of those beside DMD. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from dmdistill.commands.options import flag_name, require, require_at_least, require_name, require_positive

__all__ = [
    "METHODS",
    "FakeScoreOptions",
    "GanOptions",
    "Method",
    "ScoreOptions",
    "StudentOptions",
    "check_method",
    "unused_options",
]


@dataclass(frozen=True)
class Method:
    """What a method uses, for the check of options.

    Attributes:
        regression: it can have a regression on pairs.
        gan: it can have a discriminator, for which it needs real images; "always" where it has one in any case.
        few_steps: its student can have several steps.
        guidance: it can have a guided teacher; "always" where it is not defined for another.
        critics_first: the fake score learns before the generator, from images of its own.
    """

    regression: bool = False
    gan: bool | Literal["always"] = False
    few_steps: bool = True
    guidance: bool | Literal["always"] = True
    critics_first: bool = False


METHODS = {
    "dmd": Method(regression=True, few_steps=False),
    "dmd2": Method(gan=True),
    "f-distill": Method(gan="always"),
    "sid": Method(few_steps=False, guidance=False, critics_first=True),
    "sida": Method(gan="always", few_steps=False, guidance=False, critics_first=True),
    "decoupled-dmd": Method(guidance="always"),
}
"""The methods by their names on the command line."""

GAN_OPTIONS = ("gan_weight", "discriminator_weight", "gan_from", "discriminator", "discriminator_layers", "r1")
LPIPS_OPTIONS = ("lpips_weights", "lpips_side", "lpips_pooling", "decoder")
PAIR_OPTIONS = ("pairs", "pair_count", "batch_reg", "distance", *LPIPS_OPTIONS)
PHASE_OPTIONS = ("match_from", "fake_from", "rewarm", "regress_until", "lambda_end", "phase_steps")
REGRESSION_OPTIONS = ("match", "match_pairs", *PHASE_OPTIONS, *PAIR_OPTIONS)
DIVERGENCES = ("rkl", "kl", "js", "sf", "neyman", "sh", "jf")
SINGLE_OPTIONS = {
    "augment_fake": ("sid", "sida"),
    "discriminator": ("dmd2", "f-distill"),  # that of SiDA has no weights of its own
    "divergence": ("f-distill",),
    "generator_from": ("dmd2", "f-distill", "sid", "sida", "decoupled-dmd"),
    "r1": ("dmd2", "f-distill"),
    "ratio_ema": ("f-distill",),
    "sid_alpha": ("sid", "sida"),
    "time_shift": ("dmd2", "f-distill", "decoupled-dmd"),
    "weight": ("dmd", "dmd2", "decoupled-dmd"),
    "real_guidance": ("dmd", "dmd2", "f-distill"),
    "guidance_cap": ("dmd", "dmd2", "f-distill"),
}
"""Options of few methods, and these methods."""


@dataclass(frozen=True)
class StudentOptions:
    """The student's steps."""

    student_steps: int = 1
    """Sampling steps of the student, equally spaced in the schedule's timesteps: 1 in DMD, 4 in DMD2's SDXL."""
    student_timesteps: tuple[float, ...] = ()
    """Times of the student's steps instead, falling: timesteps of VP, sigmas of EDM, 0 to 1 of a flow. SiD's is 2.5."""
    transition: Literal["sde", "ode"] = "sde"
    """Noise that takes the image to the next step: sde: fresh; ode: the one the step predicted (deterministic)."""
    student_inputs: Literal["simulated", "data"] = "simulated"
    """Inputs of later steps in training: simulated by the student's own steps, or real images of --data, diffused."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "student_steps")
        require_at_least(self, 0, "student_timesteps")
        times = self.student_timesteps
        if any(later >= earlier for earlier, later in pairwise(times)):
            text = " ".join(f"{time:g}" for time in times)
            raise ValueError(f"--student-timesteps {text}, expected each below the one before")
        if times and self.student_steps not in (1, len(times)):
            raise ValueError(
                f"--student-steps {self.student_steps} with {len(times)} --student-timesteps: give one of them"
            )

    @property
    def step_count(self) -> int:
        """The number of the student's steps."""
        return len(self.student_timesteps) or self.student_steps


@dataclass(frozen=True)
class FakeScoreOptions:
    """The fake score, mu_fake, which keeps learning the generator's output."""

    lr_fake: float = 1e-5
    """Learning rate of the fake score; the paper uses the generator's."""
    fake_steps: int = 1
    """Updates of the fake score per update of the generator: 1 in DMD and SiD, 4 in f-distill, 5 or 10 in DMD2."""
    fake_from: float = 1.0
    """Fraction of the run after which the fake score learns; from --match-from on it does in any case."""
    ida: float = 0.0
    """Weight w of fake <- (1 - w) fake + w student after each of the student's matching updates; 0.03 in SenseFlow."""
    clip_value_fake: float | None = None
    """Largest entry of a gradient of the fake score, as in SiDA; larger ones are clipped. The default is no limit."""
    augment_fake: float = 0.0
    """Probability of each of EDM's augmentations of the images that the fake score learns from (0.12 in SiD)."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_positive(self, "lr_fake", "clip_value_fake")
        require_at_least(self, 1, "fake_steps")
        require(self, "a fraction from 0 to 1", lambda value: 0 <= value <= 1, "fake_from")
        require(self, "a weight from 0 to below 1", lambda value: 0 <= value < 1, "ida")
        require(self, "from 0 to 1", lambda value: 0 <= value <= 1, "augment_fake")


@dataclass(frozen=True)
class ScoreOptions:
    """Options that only some methods have."""

    divergence: str = "js"
    """rkl: reverse KL, kl, js: Jensen-Shannon, sf: softened reverse KL, neyman, sh: squared Hellinger, jf: Jeffreys; or
    your own h(r) = r^2 f''(r), a function of the density ratios (B), as module:function."""
    ratio_ema: float = 0.0
    """Weight of the old value in the moving average of f-distill's density ratios: 0 for none, 0.5 on ImageNet."""
    sid_alpha: float = 1.0
    """Alpha of SiD's loss, 1.2 or 1."""
    generator_from: int = 0
    """Step from which the generator learns; before it only the fake score does: in SiDA, and in a run with --start."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 0, "generator_from")
        require(self, "from 0 to below 1", lambda share: 0 <= share < 1, "ratio_ema")
        require_positive(self, "sid_alpha")
        require_name(self, "divergence", DIVERGENCES)


@dataclass(frozen=True)
class GanOptions:
    """The discriminator of diffused images, and the real images that it learns from."""

    data: str | None = None
    """Real images for a GAN: a folder, a .zip, the files of CIFAR-10 or of an IDX set. Without them DMD2 has no GAN."""
    gan_weight: float = 3e-3
    """Weight of the generator's adversarial loss; with 0 only the discriminator learns."""
    discriminator_weight: float = 1e-2
    """Weight of the discriminator's loss beside the fake score's."""
    gan_from: int = 0
    """Step from which the generator has its adversarial loss."""
    discriminator: Literal["fake", "teacher"] = "fake"
    """Network whose features the discriminator judges: the fake score, which learns with it, or the frozen teacher."""
    discriminator_layers: tuple[str, ...] = ()
    """Layers whose output the discriminator judges, by their names in the network. The default is its bottleneck."""
    r1: float = 0.0
    """Weight of the discriminator's approximate R1 penalty."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_positive(self, "discriminator_weight")
        require_at_least(self, 0, "gan_weight", "gan_from", "r1")


def unused_options(name: str) -> set[str]:
    """Return the options that a method does not use, among those of few methods; none for one that is not ours."""
    if name not in METHODS:
        return set()
    unused = {option for option, methods in SINGLE_OPTIONS.items() if name not in methods}
    if not METHODS[name].regression:
        unused |= {"lambda_reg", *REGRESSION_OPTIONS}
    return unused if METHODS[name].gan else unused | {"data", *GAN_OPTIONS}


def check_method(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise a ValueError where options contradict the method, or are of no use to it.

    Args:
        name: of the method, a key of `METHODS`.
        values: of all options by their names.
        defaults: of all options.
    """
    method = METHODS[name]

    def refuse(options: Iterable[str], reason: str) -> None:
        for option in options:
            if values[option] != defaults[option]:
                given = "" if isinstance(values[option], bool) else f" {values[option]}"
                flag = flag_name(f"no_{option}" if values[option] is False else option)
                raise ValueError(f"{flag}{given}, {reason}")

    steps = len(values["student_timesteps"]) or values["student_steps"]
    if not method.regression and values["lambda_reg"] > 0:
        raise ValueError(
            f"--lambda-reg {values['lambda_reg']} with --method {name}, which has no regression: expected 0"
        )
    if not method.regression:
        refuse(("match",), f"which is for --method dmd: --method {name} always matches distributions")
        refuse(REGRESSION_OPTIONS, f"which --method {name} does not use: it has no regression")
    if not method.few_steps and steps > 1:
        raise ValueError(
            f"{steps} student steps with --method {name}, which makes one-step students: try --method dmd2"
        )
    if steps == 1:
        refuse(("transition", "student_inputs"), "which is for students of several steps: give --student-steps")
    if not method.gan:
        refuse(GAN_OPTIONS, f"which --method {name} does not use: it has no GAN")
    if values["data"] is None:
        if method.gan == "always":
            raise ValueError(f"--method {name} learns from real images too: give --data")
        refuse(GAN_OPTIONS, "which is for a GAN, and that needs real images: give --data")
        if values["student_inputs"] == "data":
            raise ValueError("--student-inputs data needs real images: give --data")
    elif not method.gan and values["student_inputs"] != "data":
        raise ValueError(
            f"--data {values['data']} with --method {name}, which learns from no real images: leave it out"
        )
    for option, methods in SINGLE_OPTIONS.items():
        if name not in methods:
            refuse((option,), f"which is for --method {' or '.join(methods)}, not for {name}")
