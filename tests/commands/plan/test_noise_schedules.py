"""A plan for a teacher on each noise schedule."""

import json
import sys

import pytest

from dmdistill.commands.cli import main

SCHEDULES = """
from dmdistill.core.denoisers import EDMDenoiser, EpsDenoiser, FlowDenoiser, VDenoiser
from dmdistill.core.schedules import VP, Flow
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
import dataclasses

def with_denoiser(kind, schedule) -> Teacher:
    teacher = load_teacher("fashion")
    return dataclasses.replace(teacher, denoiser=kind(teacher.network, schedule), solver="ddim", config={})

def eps() -> Teacher:
    return with_denoiser(EpsDenoiser, VP.linear_betas())

def v() -> Teacher:
    return with_denoiser(VDenoiser, VP.linear_betas())

def flow() -> Teacher:
    return with_denoiser(FlowDenoiser, Flow(shift=6.0))
"""


@pytest.mark.parametrize("teacher", ["fashion", "own_schedules:eps", "own_schedules:v", "own_schedules:flow"])
def test_a_teacher_on_any_noise_schedule_is_planned(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_schedules", raising=False)
    (tmp_path / "own_schedules.py").write_text(SCHEDULES)
    sizes = ["--batch", "2", "--batch-reg", "2", "--pair-count", "4", "--match-from", "0.5", "--solver-steps", "2"]
    sizes += ["--regress-until", "1"]
    compute = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--peak-tflops", "1"]
    main(["plan", "--teacher", teacher, "--json", "plan.json", *sizes, *compute])
    numbers = json.loads((tmp_path / "plan.json").read_text())
    assert numbers["hours"] > 0
    assert {*numbers["memory"]} == {"regression", "matching, regression", "sampling"}
    assert numbers["memory"]["sampling"]["activations"] > 0
