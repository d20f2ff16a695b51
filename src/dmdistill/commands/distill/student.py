"""The student that a distillation ends with."""

from __future__ import annotations

import re
from typing import Any

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import INHERITED_KEYS, required_teacher, teacher_name
from dmdistill.commands.options import option_values
from dmdistill.core.generators import Generator
from dmdistill.models.model import Student, Teacher

__all__ = ["build_student"]


def build_student(config: DistillConfig, teacher: Teacher, generator: Generator, *, average: str, step: int) -> Student:
    """Build the student of a trained generator, frozen, named after its teacher and its run.

    Args:
        config: the options of its distillation.
        teacher: its teacher.
        generator: with the student's weights.
        average: the EMA that it is.
        step: of the run.
    """
    run = re.sub(r"[^\w.-]+", "-", config.out.resolve().name)
    for named in (teacher.name, "student"):  # after what the run is named already
        run = re.sub(rf"^{re.escape(named)}(-|$)", "", run)
    name = "-".join(filter(None, (teacher.name, "student", run)))
    inherited = {key: teacher.config.get(key) for key in (*INHERITED_KEYS, "licence", "feature_extractor")}
    inherited |= {key: teacher.config[key] for key in ("image_size", "embedded_guidance") if key in teacher.config}
    distilled = {"average": average, "step": step, **option_values(config), "teacher": teacher_name(config, teacher)}
    own = {"kind": "student", "name": name, **own_sampling(generator)}
    entries = {**own, **inherited, **required_teacher(config, teacher), "distilled": distilled}
    return Student.from_teacher(teacher, generator.denoiser.eval().requires_grad_(False), entries)


def own_sampling(generator: Generator) -> dict[str, Any]:
    """Return the entries of config.json for the times of a student, where they are not one step from pure noise."""
    if generator.timesteps == (generator.denoiser.schedule.t_max,):
        return {}
    return {"timesteps": list(generator.timesteps), "transition": generator.transition}
