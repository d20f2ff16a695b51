"""What `distill --start` begins with: a student of the same teacher, found and compared before any work."""

from __future__ import annotations

from dmdistill.app.config import Distill
from dmdistill.teachers.load import lasting_name, load_model
from dmdistill.teachers.model import Model, Teacher

__all__ = ["ALIKE", "start_of", "teacher_name"]

ALIKE = ("network", "path", "denoiser", "shape", "classes")  # in the config.json of a teacher and its student


def teacher_name(config: Distill, teacher: Teacher) -> str:
    """What the teacher is loaded by, where it was found."""
    return teacher.config.get("source") or lasting_name(config.teacher)


def start_of(config: Distill, teacher: Teacher) -> Model | None:
    """The student of --start, None where none is given. ValueError where that one is of another teacher's kind."""
    if config.start is None:
        return None
    foreign, name = "network" not in teacher.config, teacher_name(config, teacher)
    start = load_model(config.start, teacher=teacher if foreign else None)
    if foreign and start.config.get("teacher") != name:
        raise ValueError(f"--start {config.start} is not a student of the teacher {name}")
    if odd := [key for key in ALIKE if start.config.get(key) != teacher.config.get(key)]:
        raise ValueError(f"--start {config.start} is no student of {teacher.name}: {odd[0]} differs")
    return start
