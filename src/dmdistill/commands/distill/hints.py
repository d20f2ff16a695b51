"""What a user may not expect of the options of a distillation, in a line each."""

from __future__ import annotations

from collections.abc import Iterator

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.presets import recommended_presets
from dmdistill.models.model import Teacher

__all__ = ["describe_options"]

SMALL = 2_000_000  # parameters of a network for which the preset small-network was made


def describe_options(config: DistillConfig, teacher: Teacher) -> Iterator[str]:
    """Tell of cautious defaults, of another guidance than the teacher's own, of a long warm-up, of no average."""
    if not config.preset and config.resume is None:
        yield recommendation(config, teacher.num_parameters)
    own = teacher.config.get("guidance")
    if own is not None and teacher.guidance != own:
        yield f"guidance {teacher.guidance:g}, in place of the teacher's own {own:g}"
    optimizer = config.optimizer
    if optimizer.warmup >= config.steps:
        share = f"{optimizer.lr * config.steps / optimizer.warmup:.2g} of --lr {optimizer.lr:g}"
        yield f"--warmup {optimizer.warmup} is not over after {config.steps} steps: the learning rate reaches {share}"
    if not optimizer.ema_halflives:
        yield "the student is the generator itself, no average of its weights: --ema-halflives is empty"


def recommendation(config: DistillConfig, parameters: int) -> str:
    """Name the presets that were made for the teacher, the method and the number of the student's steps."""
    names = ", ".join(recommended_presets(config.teacher, config.method, config.student.step_count))
    if not names and config.method == "dmd" and parameters <= SMALL:
        names = "small-network"
    hint = f"made for such a teacher: --preset {names}" if names else "`dmdistill presets` shows what others need"
    return f"no preset: cautious defaults, --lr {config.optimizer.lr:g} for {config.steps} steps; {hint}"
