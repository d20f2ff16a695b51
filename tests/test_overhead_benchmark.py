"""The benchmark of our overhead times the networks' own calls, and nothing else."""

import sys
from pathlib import Path

import pytest
import torch

from dmdistill.commands.bench.compare import BenchmarkCase
from dmdistill.data.conditions import LabelSpace
from dmdistill.models.gaussian_mixture import ring
from dmdistill.models.model import Student, Teacher
from helpers.slow_models import FakeClock, SlowAutoencoder, slow

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import overhead


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("kind", "fields", "passes"), [(Teacher, {"steps": 4}, 7), (Student, {}, 1)])
def test_the_overhead_is_what_the_denoiser_adds(kind, fields, passes, batch):
    clock = FakeClock()
    spread = overhead.measure_overhead(slow(kind, clock, **fields), batch, clock, repeats=2)
    assert spread["images"].median == pytest.approx(passes * (11.1 + batch))
    assert spread["network"].median == pytest.approx(passes * (10 + batch))


def test_the_bare_workload_has_both_branches_of_guidance_and_the_decoding_of_latents():
    clock = FakeClock()
    teacher = slow(Teacher, clock, solver="ddim", steps=5, guidance=2.0, autoencoder=SlowAutoencoder(clock))
    work = overhead.bare_workload(teacher, BenchmarkCase(teacher).workload(3))
    before = clock.now
    work()
    assert clock.now - before == pytest.approx(5 * (10 + 2 * 3) + 7)
    assert not teacher.network._forward_pre_hooks


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_the_bare_network_computes_in_the_precision_of_the_model(precision):
    student = slow(Student, FakeClock()).to(torch.device("cpu"), precision)
    generate = BenchmarkCase(student).workload(2)
    work = overhead.bare_workload(student, generate)
    student.network.precisions.clear()
    generate()
    work()
    assert student.network.precisions == [precision, precision]


def test_a_denoiser_without_a_network_has_nothing_to_compare_with():
    teacher = Teacher(name="ring", denoiser=ring(), shape=(2,), conditions=LabelSpace(tuple("abcdefgh")), steps=2)
    assert overhead.bare_workload(teacher, BenchmarkCase(teacher).workload(2)) is None
    with pytest.raises(ValueError, match="ring"):
        overhead.measure_overhead(teacher, 2, FakeClock(), repeats=1)


def test_the_script_prints_a_table(tiny_teacher, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["overhead.py", str(tiny_teacher), "--batch", "2", "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    overhead.main()
    printed = capsys.readouterr().out
    assert "bare networks, ms" in printed
    assert "tiny" in printed
