"""The plan of each method: a GAN and further updates of the fake score cost what they add."""

import math

import pytest

from dmdistill.commands.options import change
from dmdistill.commands.plan.command import plan
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import from_method
from helpers.configs import CPU

GAN = {"data": "images"}


@pytest.fixture
def planned(tiny_teacher, class_pictures, tmp_path, monkeypatch):
    """method, options -> its estimate, from a stated speed of the device."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(class_pictures)

    def build(method, **options):
        config = from_method(PlanConfig, method, teacher=str(tiny_teacher), steps=4, batch=4, compute=CPU)
        return plan(change(config, peak_tflops=1.0, solver_steps=3, **options))

    return build


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dmd2", {}),
        ("dmd2", {"student_steps": 3}),
        ("dmd2", {**GAN, "student_steps": 2, "student_inputs": "data"}),
        ("dmd2", {**GAN, "discriminator": "teacher"}),
        ("f-distill", GAN),
        ("sid", {}),
        ("sida", {**GAN, "generator_from": 1}),
        ("decoupled-dmd", {"guidance": 3.0}),
        ("decoupled-dmd", {"guidance": 3.0, "student_steps": 2}),
    ],
)
def test_every_method_has_a_plan(method, options, planned):
    estimate = planned(method, **options)
    assert math.isfinite(estimate.hours)
    assert all(sum(memory.values()) > 0 for memory in estimate.memory.values())


def test_a_gan_costs_operations_and_memory(planned):
    without, with_gan = (planned("dmd2", fake_steps=2, **options) for options in ({}, GAN))
    (flops,), (more,) = without.flops_per_step.values(), with_gan.flops_per_step.values()
    assert more > 1.2 * flops
    assert sum(with_gan.peak.values()) > sum(without.peak.values())


@pytest.mark.parametrize(
    ("method", "said"), [("dmd", "4 generated images and 32 pairs a step"), ("dmd2", "4 generated images a step")]
)
def test_pairs_are_told_where_there_are_some(method, said, planned, capsys):
    planned(method)
    assert said in capsys.readouterr().out
