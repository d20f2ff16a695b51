"""The student that a run ends with is named after its teacher and its run."""

import json
from pathlib import Path

import pytest

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.student import build_student
from dmdistill.core.generators import Generator
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from helpers.configs import configure


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("runs/first", "tiny-student-first"),
        ("runs/tiny", "tiny-student"),
        ("runs/student", "tiny-student"),
        ("runs/tiny-student-2", "tiny-student-2"),
        ("runs/tiny-long", "tiny-student-long"),
        ("runs/tinylong", "tiny-student-tinylong"),
        ("second/", "tiny-student-second"),
        (".", "tiny-student-here"),
        ("a b\nc", "tiny-student-a-b-c"),
        ("mâché.1", "tiny-student-mâché.1"),
    ],
)
def test_the_name_tells_runs_apart_and_can_be_loaded(out, name, tiny_teacher, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    teacher = load_teacher(str(tiny_teacher))
    config = configure(DistillConfig, teacher=str(tiny_teacher), out=Path(out))
    generator = Generator(teacher.denoiser, (teacher.denoiser.schedule.t_max,))
    student = build_student(config, teacher, generator, average="ema50", step=3)
    save_model(tmp_path / "student", student, card="")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["name"] == name
    assert load_model(str(tmp_path / "student")).name == student.name == name
