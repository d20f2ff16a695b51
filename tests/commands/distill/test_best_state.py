"""The best state of a run by its teacher's feature extractor, and runs that are resumed to it."""

import dataclasses
import json
import math

import pytest
import torch

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.monitor import Monitor
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import GeneratedImages, generate_images
from dmdistill.commands.options import ComputeOptions, change
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import load_teacher
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import CPU
from helpers.feature_statistics import frechet_to_real
from helpers.runs import logged_values, skip_figures, student_bytes


def test_a_feature_extractor_measures_a_run_and_picks_the_best_state(feature_extractor, judged, settings):
    config = settings(teacher=judged, evaluate_images=40, lr=0.05)
    student = distill(config)
    found = {(row["step"], key): row[key] for row in read_metrics(config.out) for key in row if "frechet" in key}
    step, key = min(found, key=found.get)
    chosen = student.config["distilled"]
    assert (chosen["step"], f"frechet_{chosen['average']}") == (step, key)
    assert step < 6, "a run that is best at its end proves nothing here"
    images = generate_images(student, 40, batch=7, seed=config.seed + 2)
    classifier = load_classifier_features(str(feature_extractor), torch.device("cpu"))
    assert frechet_to_real(classifier, images) == pytest.approx(found[step, key], rel=1e-4)
    report = json.loads((config.out / "report.json").read_text())
    name = f"frechet_{classifier.name}"
    assert all(math.isfinite(report[who]["metrics"][name]) for who in ("teacher", "student"))

    again = evaluate(EvaluateConfig(str(config.out), images=8, batch=500, seed=config.seed + 3, compute=CPU))
    assert again["metrics"][name] == pytest.approx(report["student"]["metrics"][name], rel=1e-6)

    last = distill(change(config, out=config.out.with_name("last"), keep="last"))
    chosen = last.config["distilled"]
    assert chosen["step"] == 6
    assert found[6, f"frechet_{chosen['average']}"] == min(found[6, name] for at, name in found if at == 6)


def test_averages_that_are_still_equal_are_measured_once(judged, settings, monkeypatch):
    """The half-life is at most a tenth of the updates: those of 1 and of 3 updates are the same for ten updates."""
    measured, frechet = [], Monitor.frechet

    def record(self, metric, generator):
        measured.append([weight.clone() for weight in generator.parameters()])
        return frechet(self, metric, generator)

    monkeypatch.setattr(Monitor, "frechet", record)
    config = settings(teacher=judged, evaluate_images=20, ema_halflives=(0.1, 1.0, 3.0), lr=0.02, steps=12)
    distill(config)
    rows = [row for row in read_metrics(config.out) if "frechet_ema1" in row]
    assert [row["frechet_ema1"] == row["frechet_ema3"] for row in rows] == [
        True,
        True,
        True,
        False,
    ]  # at 3, 6, 9 and 12
    assert all(row["frechet_ema0.1"] != row["frechet_ema1"] for row in rows)
    assert len(measured) == 3 * 2 + 3


@pytest.mark.parametrize("stop", [3, 4])
def test_a_measured_run_is_resumed_to_the_same_student(stop, judged, settings, monkeypatch):
    """Killed after the best state was stored, before or after a checkpoint; log and state are computed again."""
    changes = {"teacher": judged, "evaluate_images": 20, "evaluate_every": 1, "save_every": 2, "lr": 0.02}
    complete, killed = settings("complete", **changes), settings("killed", **changes)
    distill(complete)
    evaluate_step = Monitor.evaluate

    def kill(self, step):
        values = evaluate_step(self, step)
        if step == stop:
            raise KeyError("killed")
        return values

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "evaluate", kill)
        with pytest.raises(KeyError, match="killed"):
            distill(killed)
    distill(dataclasses.replace(killed, resume=killed.out))
    assert student_bytes(killed.out) == student_bytes(complete.out)
    assert logged_values(killed.out) == logged_values(complete.out)


def test_a_run_in_reduced_precision_ends_with_its_report(judged, settings, monkeypatch):
    skip_figures(monkeypatch)
    compute = ComputeOptions(device="cpu", precision="bf16", threads=1)
    config = settings(teacher=judged, evaluate_images=20, pair_count=8, report_images=12, compute=compute)
    distill(config)
    report = json.loads((config.out / "report.json").read_text())
    assert report["student"]["images"] == report["teacher"]["images"] == 12


def test_images_of_a_model_that_was_cast_to_bf16_have_an_identity(judged):
    """By which an interrupted report finds what it has measured."""
    teacher = load_teacher(judged).to("cpu", torch.bfloat16)
    whole = GeneratedImages(teacher, 4, seed=0).digest()
    cast = GeneratedImages(teacher.cast_weights(), 4, seed=0).digest()
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.float32, torch.bfloat16}
    assert cast != whole
    assert GeneratedImages(teacher, 4, seed=0).digest() == cast
