"""What the page of a model generates: a student's and its teacher's images from the same noise, each timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.bench.command import load_models
from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.bench.timers import device_clock
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.ui.config import UiConfig
from dmdistill.core.denoisers import Condition
from dmdistill.core.solvers import SOLVERS
from dmdistill.models.clipping import clip
from dmdistill.models.model import Model, Student, Teacher

__all__ = ["Inputs", "ModelPair", "Result", "load_pair"]

Inputs = Sequence[tuple[Tensor, Condition | None]]
"""Noise and conditions of images, in batches."""


@dataclass(frozen=True)
class Result:
    """Images of a model, B C H W, and how they came about.

    Attributes:
        images: on the CPU.
        seconds: that all of them took.
        evaluations: of the network, per image.
        path: of the first image, x_t and then mu at some of the solver's times, 2 N C H W; None for a student.
    """

    images: Tensor
    seconds: float
    evaluations: int
    path: Tensor | None = None


@dataclass(frozen=True)
class ModelPair:
    """A teacher and its student, on one device; no student where the page is a teacher's."""

    teacher: Teacher
    student: Student | None = None

    @property
    def main(self) -> Model:
        """The model that the page is about."""
        return self.student or self.teacher

    def draw(self, condition: int | str | None, *, count: int, seed: int) -> Inputs:
        """Draw the inputs that both models share, which `dmdistill sample` draws too.

        Args:
            condition: a prompt, the number of a class, or None for every class in turn.
            count: of images.
            seed: of the noise.

        Raises:
            ValueError: the model cannot have these.
        """
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed {seed}, expected 0 to 2**63 - 1")
        prompts, labels = (condition, None) if isinstance(condition, str) else (None, condition)
        return list(self.main.seeded_inputs(prompts, labels=labels, count=count, seed=seed))

    def generate_student(self, inputs: Inputs, *, steps: int) -> Result:
        """Generate the student's images in its first `steps` steps. ValueError where it has not as many."""
        assert self.student is not None
        if not 1 <= steps <= self.student.evaluations:
            raise ValueError(f"{steps} steps, expected 1 to {self.student.evaluations}")
        student = replace(self.student, timesteps=self.student.timesteps[:steps])
        images, seconds = timed(student, inputs, student.images)
        return Result(images, seconds, student.evaluations)

    def generate_teacher(self, inputs: Inputs, *, columns: int = 9) -> Result:
        """Generate the teacher's images, and keep the path of the first in so many columns."""
        teacher, path = self.teacher, []
        denoiser = clip(teacher.guided_denoiser, teacher.clipping)
        first = inputs[0][0]

        def keep(_: Any, arguments: tuple[Any, ...], mu: Tensor) -> None:
            x_t, t, *_ = arguments
            path.append((t[:1], x_t[:1].clone(), mu[:1].clone()))

        def generate(z: Tensor, cond: Condition | None) -> Tensor:
            hook = denoiser.register_forward_hook(keep) if z is first else None
            try:
                return teacher.decode(SOLVERS[teacher.solver](denoiser, z, cond, steps=teacher.steps))
            finally:
                if hook is not None:
                    hook.remove()

        images, seconds = timed(teacher, inputs, generate)
        return Result(images, seconds, teacher.evaluations, decode_path(teacher, path, images[:1], columns))


@torch.no_grad()
def timed(model: Model, inputs: Inputs, generate: Callable[..., Tensor]) -> tuple[Tensor, float]:
    """Return the images of all batches, on the CPU, and the seconds that they took."""
    clock = device_clock(model.device)
    start = clock()
    images = [generate(z, cond) for z, cond in inputs]
    seconds = clock() - start
    return torch.cat(images).cpu(), seconds


@torch.no_grad()
def decode_path(teacher: Teacher, path: Sequence[tuple[Tensor, ...]], last: Tensor, columns: int) -> Tensor:
    """Return the images of a solver's path, x_t first: at `columns` - 1 of its times, evenly spaced, and at its end.

    Of a time's evaluations the last is on the path: a solver of second order looks ahead first. x_t is divided by its
    standard deviation for data of variance 1.
    """
    visited = {float(t): (x_t, mu) for t, x_t, mu in path}
    times = list(visited)
    count = min(columns - 1, len(times))
    chosen = [times[round(i * (len(times) - 1) / max(count - 1, 1))] for i in range(count)]
    schedule = teacher.denoiser.schedule
    rows = []
    for number in (0, 1):
        samples = torch.cat([visited[t][number] for t in chosen])
        if number == 0:
            t = torch.tensor(chosen, device=samples.device)
            scale = (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt().reshape(-1, 1, 1, 1)
            samples = samples / scale.to(samples.dtype)
        rows += [torch.cat([teacher.decode(row[None]) for row in samples]).cpu(), last]
    return torch.cat(rows)


def load_pair(config: UiConfig) -> ModelPair:
    """Load a student with its teacher, or a teacher alone, on the device, and generate one image as a warm-up.

    ValueError where a model is unknown, or the student's teacher.
    """
    models: list[Any] = load_models(BenchConfig(config.model, teacher=config.teacher))
    device, precision = setup_compute(config.compute)
    pair = ModelPair(*(model.to(device, precision).cast_weights() for model in models))
    if pair.main.text is None:
        inputs = pair.draw(None, count=1, seed=0)
        pair.generate_teacher(inputs)
        if pair.student is not None:
            pair.generate_student(inputs, steps=pair.student.evaluations)
    return pair
