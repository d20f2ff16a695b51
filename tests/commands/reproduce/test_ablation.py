"""`dmdistill reproduce ablation | weighting`: equal compute is counted; finished students are kept."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmdistill.commands.cli import main
from dmdistill.commands.distill.command import load_configured_teacher
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import initial_generator, trainable_copy
from dmdistill.commands.distill.setup import set_up
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.pairs.command import make_teacher_pairs
from dmdistill.commands.presets import from_preset
from dmdistill.commands.reproduce.ablation import command as comparing
from dmdistill.commands.reproduce.ablation import equal_compute
from dmdistill.commands.reproduce.ablation import experiment as ablating
from dmdistill.commands.reproduce.ablation.command import ABLATION, FAMILY, WEIGHTING, ablation, family, weighting
from dmdistill.commands.reproduce.ablation.equal_compute import count_operations
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.core.losses import pseudo_huber
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.training.signals import TrainingStopped
from dmdistill.training.trainer import Trainer
from helpers.configs import configure

COMPUTE = ComputeOptions(device="cpu", precision="fp32", threads=1)


def tiny(teacher, **changes):
    base = configure(
        DistillConfig, teacher=teacher, pair_count=8, batch=5, batch_reg=3, steps=6, report_images=0, compute=COMPUTE
    )
    return change(base, **{"evaluate_images": 8, "ema_halflives": (2.0,), "warmup": 2} | changes)


def set_up_distillation(config):
    """The distillation of a configuration, without a run."""
    teacher = load_configured_teacher(config)
    regresses = config.regression.lambda_reg > 0
    pairs = make_teacher_pairs(teacher, config.out / "pairs", count=8, seed=0) if regresses else None
    generator = initial_generator(config, teacher)
    fake = trainable_copy(teacher.denoiser, 0, config.memory.checkpointing)
    rng = torch.Generator().manual_seed(0)
    return set_up(config, teacher, generator, fake, distance=pseudo_huber, pairs=pairs, parallel=Parallelism(), rng=rng)


@pytest.mark.parametrize(("row", "guidance"), [("full", 2.0), *((row, None) for row in ABLATION)])
def test_the_operations_of_a_training_are_those_that_its_steps_take(row, guidance, tiny_teacher, tmp_path):
    config = tiny(str(tiny_teacher), out=tmp_path / "run", ode=SolverOptions(solver_steps=2, guidance=guidance))
    config = change(config, **ABLATION[row])
    distillation = set_up_distillation(config)
    with FlopCounterMode(display=False) as counter:
        distillation.iterate(0)
    assert counter.get_total_flops() * config.steps == count_operations(config)


def test_pairs_take_the_evaluations_of_their_solver(tiny_teacher, tmp_path):
    config = tiny(str(tiny_teacher), out=tmp_path / "run", ode=SolverOptions(solver_steps=3))
    with FlopCounterMode(display=False) as counter:
        make_teacher_pairs(load_configured_teacher(config), tmp_path / "pairs", count=8, seed=0)
    assert count_operations(config, pairs=True) - count_operations(config) == counter.get_total_flops()


@pytest.fixture
def small(tiny_teacher, tmp_path_factory, monkeypatch):
    """The experiment's sizes, cut down to a tiny teacher's, which the bundled classifier measures."""
    teacher, folder = load_teacher(str(tiny_teacher)), tmp_path_factory.mktemp("measured")
    measured = dataclasses.replace(teacher, config=teacher.config | {"feature_extractor": "fashion-classifier"})
    save_model(folder, measured, card="")
    for module in (ablating, equal_compute):  # whose own test is above: it takes seconds
        monkeypatch.setattr(module, "count_operations", lambda config, **_: config.steps * config.fake_score.fake_steps)
    monkeypatch.setattr(ablating, "REFERENCE_IMAGES", 6)
    monkeypatch.setattr(ablating, "STUDENT_IMAGES", 9)
    monkeypatch.setattr(ablating, "from_preset", lambda kind, name, **changes: tiny(str(folder), **changes))


def test_variants_get_equal_compute_and_finished_students_are_kept(small, tmp_path, capsys):
    config = ReproduceConfig("ablation", out=tmp_path, seeds=2, steps=2, compute=COMPUTE)
    table = ablation(config)
    capsys.readouterr()
    _, *rows = table["rows"]
    assert [row["steps"] for row in rows] == [2, 2, 2, 1]
    for name, row in zip(ABLATION, rows, strict=True):
        seeds = 1 if name == "no-matching" else 2  # the regression draws nothing
        assert [len(row[key]["values"]) for key in ("frechet", "precision", "recall", "minutes")] == [seeds] * 4
        settings = load_model(str(tmp_path / name / f"seed-{seeds - 1}" / "student")).config["distilled"]
        assert (settings["steps"], settings["seed"]) == (row["steps"], seeds - 1)
    assert json.loads((tmp_path / "ablation.json").read_text())["rows"] == table["rows"]
    assert (tmp_path / "ablation.png").stat().st_size > 5000
    assert ablation(config)["rows"] == table["rows"]
    assert "distilling" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"seed-0 was run with --steps 2, now --steps 3: choose another --out"):
        ablation(change(config, steps=3))


def test_weights_are_those_of_table_3(small, tmp_path):
    table = weighting(ReproduceConfig("weighting", out=tmp_path, seeds=1, steps=2, compute=COMPUTE))
    students = [load_model(str(tmp_path / name / "seed-0" / "student")) for name in WEIGHTING]
    assert [row["row"] for row in table["rows"]] == ["the teacher", *WEIGHTING]
    assert [student.config["distilled"]["weight"] for student in students] == ["eq8", "sigma", "sigma3"]


def test_a_start_that_cannot_be_is_refused_before_pairs_are_made(small, tmp_path):
    for start, match in (("nope", "unknown model 'nope'"), ("fashion-student", "is no student of")):
        config = ReproduceConfig("ablation", out=tmp_path, seeds=1, start=start, compute=COMPUTE)
        with pytest.raises(ValueError, match=match):
            ablation(config)
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_experiment_continues(small, terminated, tmp_path, capsys):
    config = ReproduceConfig("weighting", out=tmp_path, seeds=1, steps=4, compute=COMPUTE)
    terminated(Trainer, "advance", 2)
    with pytest.raises(TrainingStopped):
        weighting(config)
    assert "resume with" in capsys.readouterr().out
    assert not (tmp_path / "weighting.json").exists()
    assert len(weighting(config)["rows"]) == 4


def test_a_start_that_is_no_student_of_the_teacher_is_refused(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "ablation", "--out", str(tmp_path), "--start", "fashion-student", "--threads", "1"])
    assert end.value.code == 2
    assert "--start fashion-student is no student of" in capsys.readouterr().err


@pytest.mark.slow
def test_every_method_is_compared_by_its_preset(small, class_pictures, tmp_path, monkeypatch):
    teacher = ablating.from_preset(DistillConfig, "fashion-dmd").teacher

    def small_preset(kind, name, **changes):
        sizes = {"teacher": teacher, "batch": 4, "steps": 3, "evaluate_images": 8, "ema_halflives": (2.0,)}
        return from_preset(kind, name, **changes, **sizes)

    monkeypatch.setattr(comparing, "from_preset", small_preset)
    config = ReproduceConfig("family", out=tmp_path, seeds=2, steps=4, data=str(class_pictures), compute=COMPUTE)
    _, *rows = family(config)["rows"]
    assert [row["row"] for row in rows] == [name.replace("-", " ") for name in FAMILY]
    assert [len(row["frechet"]["values"]) for row in rows] == [2, 2, 1, 1, 1, 1, 1, 1, 1]
    students = {name: load_model(str(tmp_path / name / "seed-0" / "student")) for name in FAMILY}
    assert [student.evaluations for student in students.values()] == [1, 1, 1, 2, 4, 1, 1, 1, 1]
    methods = [student.config["distilled"]["method"] for student in students.values()]
    assert methods == ["dmd", "dmd2", "dmd2", "dmd2", "dmd2", "f-distill", "sid", "sida", "decoupled-dmd"]
    assert (tmp_path / "family-images.png").stat().st_size > 5000
