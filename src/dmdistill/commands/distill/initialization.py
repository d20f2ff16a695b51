"""What a student is built on: its teacher, by name, and the student of `distill --start`, if there is one."""

from __future__ import annotations

from typing import Any

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.models.load import absolute_name, load_model
from dmdistill.models.model import Model, Teacher

__all__ = ["ALIKE", "built_on", "start_of", "teacher_name"]

ALIKE = ("network", "schedule", "denoiser", "shape", "classes")  # in the config.json of a teacher and its student


def teacher_name(config: DistillConfig, teacher: Teacher) -> str:
    """What the teacher is loaded by, where it was found."""
    return teacher.config.get("source") or absolute_name(config.teacher)


def built_on(config: DistillConfig, teacher: Teacher) -> dict[str, Any]:
    """What the config.json says of a student that needs its teacher to be loaded: adapters, networks not ours."""
    rank, named = config.lora_student, {"teacher": teacher_name(config, teacher)}
    if rank:
        return {"lora": {"rank": rank, "alpha": rank}, **named}
    return {} if "network" in teacher.config else named


def start_of(config: DistillConfig, teacher: Teacher) -> Model | None:
    """The student of --start, None where none is given.

    ValueError where that one is of another teacher's kind, or adapters are to go on and it has none of this run's form.
    """
    if config.start is None:
        return None
    foreign, name = "network" not in teacher.config, teacher_name(config, teacher)
    start = load_model(config.start, teacher=teacher if foreign else None)
    if foreign and start.config.get("teacher") != name:
        raise ValueError(f"--start {config.start} is not a student of the teacher {name}")
    if odd := [key for key in ALIKE if start.config.get(key) != teacher.config.get(key)]:
        raise ValueError(f"--start {config.start} is no student of {teacher.name}: {odd[0]} differs")
    if config.lora_student:
        check_adapters(config, teacher, start)
    return start


def check_adapters(config: DistillConfig, teacher: Teacher, start: Model) -> None:
    """ValueError where a student has no adapters of this run's form, or to other weights."""
    if odd := [key for key, value in built_on(config, teacher).items() if start.config.get(key) != value]:
        raise ValueError(
            f"--start {config.start} with --lora-student {config.lora_student}: expected a student of "
            f"{odd[0]} {built_on(config, teacher)[odd[0]]!r}, its {odd[0]} is {start.config.get(odd[0])!r}; without "
            "--lora-student any student of this teacher will do"
        )
