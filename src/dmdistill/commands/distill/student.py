"""The student that a distillation ends with."""

from __future__ import annotations

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import SHARED_KEYS, required_teacher, teacher_name
from dmdistill.commands.options import option_values
from dmdistill.core.generators import Generator
from dmdistill.models.model import Student, Teacher

__all__ = ["build_student"]

INHERITED_KEYS = (*SHARED_KEYS, "licence", "feature_extractor")  # from the teacher's config.json


def build_student(config: DistillConfig, teacher: Teacher, generator: Generator, *, average: str, step: int) -> Student:
    """Build the student of a trained generator, frozen.

    Args:
        config: the options of its distillation.
        teacher: its teacher.
        generator: with the student's weights.
        average: the EMA that it is.
        step: of the run.
    """
    name = f"{teacher.name}-student"
    inherited = {key: teacher.config.get(key) for key in INHERITED_KEYS}
    distilled = {"average": average, "step": step, **option_values(config), "teacher": teacher_name(config, teacher)}
    return Student(
        name=name,
        denoiser=generator.denoiser.eval().requires_grad_(False),
        shape=teacher.shape,
        conditions=teacher.conditions,
        autoencoder=teacher.autoencoder,
        text=teacher.text,
        licence=teacher.licence,
        feature_extractor=teacher.feature_extractor,
        config={
            "kind": "student",
            "name": name,
            **inherited,
            **required_teacher(config, teacher),
            "distilled": distilled,
        },
    )
