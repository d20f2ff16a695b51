"""The solver and the guidance of a teacher on the command line of `sample` and `evaluate`."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from dmdistill.commands.cli import main
from dmdistill.commands.evaluate.generated_images import GeneratedImages
from dmdistill.commands.options import ComputeOptions, SolverOptions
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.models.load import load_teacher
from helpers.tiny_models import save_student

COMPUTE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
GUIDED = ["--guidance", "3", "--solver", "ddim", "--solver-steps", "2"]


def test_a_sampled_teacher_has_the_solver_and_guidance_that_are_given(tiny_teacher, tmp_path):
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    ode = SolverOptions(solver="ddim", solver_steps=2, guidance=3.0)
    images = sample(SampleConfig(str(tiny_teacher), tmp_path / "x.png", count=3, ode=ode, compute=compute))
    teacher = replace(load_teacher(str(tiny_teacher)), solver="ddim", steps=2, guidance=3.0)
    torch.testing.assert_close(images, teacher(count=3), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(images, replace(teacher, guidance=1.0)(count=3), rtol=1e-3, atol=1e-3)


def test_an_evaluated_teacher_has_the_solver_and_guidance_that_are_given(judged, tmp_path):
    values = {}
    for name, options in {"plain": [], "guided": GUIDED, "again": GUIDED}.items():
        report = tmp_path / f"{name}.json"
        main(["evaluate", judged, "--images", "20", "--json", str(report), *options, *COMPUTE])
        values[name] = json.loads(report.read_text())
    assert values["plain"]["evaluations_per_image"] == load_teacher(judged).evaluations
    assert values["guided"]["evaluations_per_image"] == 2 * 2
    assert values["guided"]["metrics"] == values["again"]["metrics"] != values["plain"]["metrics"]


def test_digests_follow_solver_steps_and_guidance(tiny_teacher):
    """By them the features of a model's images are cached."""
    teacher = load_teacher(str(tiny_teacher))
    settings = list(product(("heun", "ddim", "pndm"), (2, 3), (1.0, 1.5)))
    teachers = [replace(teacher, solver=solver, steps=steps, guidance=scale) for solver, steps, scale in settings]
    assert len({GeneratedImages(one, 11, seed=2).digest() for one in teachers}) == len(settings)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_student_has_none_of_them(command, tiny_teacher, tmp_path, error_line):
    save_student(str(tiny_teacher), tmp_path / "student")
    line = error_line(command, tmp_path / "student", *GUIDED, *COMPUTE)
    assert "--solver ddim, --solver-steps 2, --guidance 3.0: tiny-student is a student" in line
    assert line.rstrip().endswith("omit them")


def test_images_have_none_of_them(class_pictures, error_line):
    line = error_line("evaluate", class_pictures, "--guidance", "2", *COMPUTE)
    assert f"--guidance 2.0: {class_pictures} is a set of images" in line
    assert line.rstrip().endswith("omit it")
