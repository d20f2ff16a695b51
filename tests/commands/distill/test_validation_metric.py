"""The metric that compares a run's states: FID against real images, or a classifier's Frechet distance."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.commands.distill import command as distilling
from dmdistill.commands.distill import validation_metric
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.validation_metric import load_validation_metric
from dmdistill.commands.evaluate import compute
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import generate_images
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.solver_options import with_solver_options
from dmdistill.data.image_sources import open_images
from dmdistill.data.image_tensors import from_uint8, to_uint8
from dmdistill.data.pairs import open_pairs
from dmdistill.distributed.process_group import SINGLE_PROCESS
from dmdistill.io.atomic import read_json
from dmdistill.metrics.frechet import frechet_distance
from dmdistill.models.load import load_teacher
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import configure
from helpers.feature_statistics import feature_statistics

HERE = {"device": torch.device("cpu"), "processes": SINGLE_PROCESS}
MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)


class Quarters:
    """Features in Inception's place: the means of an image's quarters."""

    name, id = "quarters", "quarters-1"

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture
def quarters(monkeypatch, tmp_path):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(validation_metric, "load_inception", lambda **_: Quarters())


@pytest.fixture
def real(tmp_path, rng):
    """Thirty grey pictures of 8 x 8."""
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(torch.randint(256, (30, 8, 8), generator=rng, dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{i:02d}.png")
    return str(folder)


@pytest.fixture
def config(tiny_teacher, tmp_path, real):
    return configure(
        DistillConfig,
        teacher=str(tiny_teacher),
        out=tmp_path / "run",
        reference=real,
        pair_count=12,
        steps=6,
        batch=5,
        batch_reg=4,
        lr=0.02,
        warmup=2,
        ema_halflives=(1.0, 3.0),
        sample_every=6,
        evaluate_every=2,
        evaluate_images=20,
        report_images=0,
        save_every=4,
        ode=SolverOptions(solver_steps=3),
        compute=MACHINE,
    )


def test_the_best_state_by_fid_becomes_the_student(config, quarters):
    student = distilling.distill(config)
    found = {(row["step"], key): row[key] for row in read_metrics(config.out) for key in row if "frechet" in key}
    assert len(found) == 6
    distilled = student.config["distilled"]
    key = (distilled["step"], f"frechet_{distilled['average']}")
    assert found[key] == min(found.values())
    reference = feature_statistics(Quarters(), [open_images(config.evaluation.reference).images(range(30))])
    [drawn] = generate_images(student, 20, batch=20, seed=config.seed + 2)
    own = feature_statistics(Quarters(), [((drawn + 1) * 127.5).round().clamp(0, 255)])
    assert found[key] == pytest.approx(frechet_distance(own, reference), rel=1e-4)


def test_features_of_the_reference_are_cached(config, quarters):
    teacher, said = load_teacher(config.teacher), []
    for _ in range(2):
        metric = load_validation_metric(config.evaluation.reference, teacher, **HERE, say=said.append)
    assert [("are cached in" in line) for line in said] == [True]
    images = open_images(config.evaluation.reference).images(range(30))
    own = metric.moments(map(from_uint8, images.split(11))).statistics()
    assert frechet_distance(own, metric.reference) == pytest.approx(0, abs=1e-6)


def test_without_a_reference_the_teachers_feature_extractor_compares(tiny_teacher):
    teacher = load_teacher(str(tiny_teacher))
    assert load_validation_metric(None, teacher, **HERE, say=print) is None
    named = dataclasses.replace(teacher, feature_extractor="fashion-classifier")
    metric = load_validation_metric(None, named, **HERE, say=print)
    assert (metric.extractor.name, metric.label) == ("fashion-classifier", "Frechet distance (fashion-classifier)")


def test_without_a_report_the_command_that_measures_is_named(config, quarters, capsys):
    distilling.distill(config)
    expected = f"`dmdistill evaluate {config.out} --reference {config.evaluation.reference}` measures the student"
    assert expected in capsys.readouterr().out


def test_the_report_is_measured_as_evaluate_does(config, quarters, monkeypatch, capsys):
    """FID of teacher and student against --reference; the run's own pairs are the first of the teacher's images."""
    monkeypatch.setattr(compute, "load_inception", lambda *_, **__: Quarters())
    monkeypatch.setattr(Quarters, "name", "inception")
    distilling.distill(change(config, report_images=30))
    printed = capsys.readouterr().out
    assert "FID" in printed
    assert "lower is" in printed
    assert f"compared with {config.evaluation.reference} (30 images)" in printed
    assert re.search(r"best: ema\d+ of step \d, FID [\d.]+ over \d+ images; lower is better", printed)
    report = read_json(config.out / "report.json")
    seed = config.seed + 3
    again = evaluate(
        EvaluateConfig(str(config.out), images=30, reference=config.evaluation.reference, seed=seed, compute=MACHINE)
    )
    for name in ("metrics", "images", "reference", "seed", "model"):
        assert report["student"][name] == again[name]
    pairs, teacher = open_pairs(config.out / "pairs"), load_teacher(config.teacher)
    teacher = with_solver_options(teacher, config.ode)
    images = torch.cat([pairs[range(12)][1], *generate_images(teacher, 18, batch=18, seed=seed)])
    own, real = (
        feature_statistics(Quarters(), [batch])
        for batch in (to_uint8(images), open_images(config.evaluation.reference).images(range(30)))
    )
    assert report["teacher"]["metrics"]["fid"] == pytest.approx(frechet_distance(own, real), rel=1e-3)


def test_images_of_other_channels_are_refused_before_the_run_begins(config, quarters, tmp_path):
    (tmp_path / "colours").mkdir()
    for i in range(3):
        Image.new("RGB", (12, 12), (i, 90, 200)).save(tmp_path / "colours" / f"{i}.png")
    with pytest.raises(ValueError, match=r"has images \(3, 8, 8\), tiny's are \(1, 8, 8\)"):
        distilling.distill(change(config, reference=str(tmp_path / "colours")))
    assert not config.out.exists()


def test_images_of_any_size_are_brought_to_the_teachers(config, quarters, idx_folder):
    metric = load_validation_metric(str(idx_folder), load_teacher(config.teacher), **HERE, say=print)
    expected = feature_statistics(Quarters(), [open_images(str(idx_folder), side=8).images(range(200))])
    assert frechet_distance(metric.reference, expected) == pytest.approx(0, abs=1e-6)


def test_statistics_of_edm_will_do(quarters, tiny_teacher, tmp_path):
    known = feature_statistics(Quarters(), [torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)])
    np.savez(tmp_path / "x.npz", mu=known.mean.numpy(), sigma=known.covariance.numpy())
    metric = load_validation_metric(str(tmp_path / "x.npz"), load_teacher(str(tiny_teacher)), **HERE, say=print)
    assert frechet_distance(metric.reference, known) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_compiled_distillation_makes_the_same_student(config, quarters):
    """Up to rounding."""
    students = []
    for on in (False, True):
        changes = {"out": config.out / str(on), "compile": on, "lr": 1e-3, "keep": "last"}
        students.append(distilling.distill(change(config, **changes)))
    one, other = (
        student.images(*student.sample_inputs(9, rng=torch.Generator().manual_seed(0))) for student in students
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0.01)


@pytest.mark.slow
def test_fid_on_the_way_is_the_fid_of_evaluate(config, monkeypatch, tmp_path):
    if not (assets := os.environ.get("DMDISTILL_ASSETS")) or not (Path(assets) / "inception-2015-12-05.pt").is_file():
        pytest.skip("DMDISTILL_ASSETS names no folder with inception-2015-12-05.pt")
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    few = change(config, ema_halflives=(1.0,), evaluate_every=6)
    distilling.distill(few)
    [found] = [row["frechet_ema1"] for row in read_metrics(few.out) if "frechet_ema1" in row]
    again = evaluate(
        EvaluateConfig(str(few.out), images=20, reference=few.evaluation.reference, seed=few.seed + 2, compute=MACHINE)
    )
    assert float(f"{found:.4g}") == pytest.approx(again["metrics"]["fid"], rel=1e-4)
