"""A distillation from end to end, of a teacher small enough for seconds."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dmdistill.commands.distill import pair_loading, report
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change, flag_name
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import from_run
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.core.generators import Generator
from dmdistill.data.image_tensors import to_uint8
from dmdistill.data.pairs import open_pairs
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.metrics.lpips_weights import load_lpips
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Teacher
from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.signals import TrainingStopped
from helpers.configs import CPU, configure
from helpers.runs import logged_values, student_bytes

ADAPTERS = {"lora_student": 2, "lora_fake": 2}


def test_the_same_seed_gives_the_same_student(settings):
    first, again, other = settings("a"), settings("b"), settings("c", seed=1)
    for config in (first, again, other):
        distill(config)
    assert student_bytes(first.out) == student_bytes(again.out) != student_bytes(other.out)
    assert logged_values(first.out) == logged_values(again.out)


@pytest.mark.parametrize(("stop", "changes"), [(0, {}), (3, {}), (3, ADAPTERS)], ids=["0", "3", "3-adapters"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(stop, changes, settings, monkeypatch, capsys):
    complete, stopped = settings("complete", **changes), settings("stopped", **changes)
    distill(complete)
    iterate = Distillation.iterate

    def interrupting(self, step):
        losses = iterate(self, step)
        if step == stop:
            signal.raise_signal(signal.SIGINT)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "iterate", interrupting)
        with pytest.raises(TrainingStopped) as end:
            distill(stopped)
    assert end.value.exit_code == 130
    assert f"stopped after step {stop + 1}" in capsys.readouterr().out
    assert not (stopped.out / "student").exists()
    distill(dataclasses.replace(stopped, resume=stopped.out))
    assert student_bytes(stopped.out) == student_bytes(complete.out)
    assert logged_values(stopped.out) == logged_values(complete.out)


def test_a_run_interrupted_while_it_makes_pairs_can_be_resumed(settings, monkeypatch, capsys):
    complete, stopped = settings("complete"), settings("stopped")
    distill(complete)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dmdistill.data.shards.write_safetensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(stopped)
    assert f"--resume {stopped.out}\n" in capsys.readouterr().out
    distill(dataclasses.replace(stopped, resume=stopped.out))
    assert student_bytes(stopped.out) == student_bytes(complete.out)


@pytest.mark.parametrize(
    "changes",
    [
        {"lambda_reg": 0.0},
        {"match": False},
        {"fake_steps": 3},
        {"guidance": 2.0},
        {"solver": "ddim"},
        {"lambda_end": 0.0, "lr_decay": False},
        {"match_pairs": True, "fake_steps": 2},
        {"lambda_reg": 0.0, "match_from": 0.5},
        {"ema_halflives": ()},
        {"weight": "sigma3", "min_t": 0.1, "max_t": 0.9, "save_dtype": "fp16"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_variant_runs(changes, settings):
    config = settings(**{"solver_steps": 2, **changes})
    student = distill(config)
    rows = read_metrics(config.out)
    losses = {key for row in rows for key in row if key.startswith("loss_")}
    matches, regresses = config.matching.match, config.regression.lambda_reg > 0
    assert ("loss_kl" in losses, "loss_fake" in losses) == (matches, matches)
    assert ("loss_reg" in losses) == regresses
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["step"] for row in rows] == ([2, 3, 4, 6] if matches else [2, 4, 6])
    z, cond = student.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    assert torch.isfinite(student.images(z, cond)).all()


def test_a_run_writes_all_of_its_files(settings, tiny_teacher, figures):
    before = (tiny_teacher / "model.safetensors").read_bytes()
    config = settings(solver_steps=None, pair_count=8)
    student = distill(config)
    assert (tiny_teacher / "model.safetensors").read_bytes() == before
    assert (student.name, student.evaluations, student.config["kind"]) == (
        f"tiny-student-{config.out.name}",
        1,
        "student",
    )
    assert {file.name for file in config.out.iterdir()} == {
        *("checkpoints", "comparison.png", "config.toml", "metrics.jsonl", "pairs"),
        *("report.json", "report.png", "samples", "student"),
    }
    names = ["start.png", "step-000003.png", "step-000006.png"]
    assert sorted(file.name for file in (config.out / "samples").iterdir()) == names
    assert from_run(DistillConfig, config.out) == change(config, resume=config.out)

    written = json.loads((config.out / "report.json").read_text())
    assert [written[who]["evaluations_per_image"] for who in ("teacher", "student")] == [35, 1]
    assert [written[who]["model"] for who in ("teacher", "student")] == ["tiny", student.name]
    assert written["seconds"]["distillation"] == pytest.approx(read_metrics(config.out)[-1]["seconds"], abs=0.01)
    assert written["seconds"]["pairs"] > 0
    assert written["teacher"]["seconds_per_image"] > written["student"]["seconds_per_image"] > 0
    for name in ("report.png", "comparison.png", "samples/step-000006.png"):
        with Image.open(config.out / name) as picture:
            picture.verify()


def test_curves_are_drawn_of_measured_values_only(figures, tmp_path, monkeypatch):
    titles, save = [], Figure.savefig

    def record_titles(figure, *words, **named):
        titles.append([axes.get_title() for axes in figure.axes])
        save(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", record_titles)
    first = {"step": 1, "seconds": 1.0, "loss_kl": 0.5}
    for row in (first | {"gradient_fake": 2.0}, first | {"frechet_raw": 2.0, "sample_mean": 0.0, "gap_0": 0.1}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        report.draw_curves(tmp_path)
    gaps, spread = "gap |mu_fake - mu_real| per noise bin", "samples' mean, std and saturation"
    assert titles == [["losses", "gradient norms"], ["Frechet distance", "losses", gaps, spread]]


def test_the_student_is_the_longest_ema(settings, tmp_path, rng):
    """The checkpoint, the stored student and the images of `sample` agree."""
    config = settings()
    distill(config)
    student, teacher = load_model(str(config.out / "student")), load_teacher(config.teacher)
    state = torch.load(config.out / "checkpoints" / "step-00000006.pt", weights_only=True)
    average = {name.removeprefix("denoiser."): w for name, w in state["updates"]["generator"]["emas"][-1].items()}
    for name, tensor in student.denoiser.state_dict().items():
        assert torch.equal(tensor, average[name])

    drawn = sample(SampleConfig(str(config.out), out=tmp_path / "x.png", count=7, columns=4, compute=CPU))
    z, _ = student.sample_inputs(7, rng=rng)
    teacher.denoiser.load_state_dict(average)
    expected = Generator(teacher.denoiser)(z, teacher.conditions.select(torch.arange(7)))
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)
    with Image.open(tmp_path / "x.png") as picture:
        first = np.array(picture)[0:16:2, 0:16:2]
    assert np.array_equal(first, to_uint8(drawn[0, 0]).numpy())


def test_regression_moves_the_student_towards_the_pairs(settings):
    """After regression only, the student is closer to the teacher's images than one evaluation of the teacher."""
    config = settings(match=False, steps=250, pair_count=64, batch_reg=32, lr=3e-3, log_every=50, sample_every=300)
    config = change(config, evaluate_every=300, save_every=300, ema_halflives=(5.0,))
    student = distill(config)
    z, y, index = open_pairs(config.out / "pairs")[range(64)]
    cond = student.condition(index)
    start = Generator(load_teacher(config.teacher).denoiser)(z, cond)
    after, before = ((x - y).abs().mean() for x in (student.images(z, cond), start))
    assert after < 0.5 * before


def test_given_pairs_give_the_same_student_as_own_pairs(settings, tiny_teacher, tmp_path):
    dataset = pairs(
        configure(
            PairsConfig,
            teacher=str(tiny_teacher),
            out=tmp_path / "pairs",
            pair_count=12,
            solver_steps=3,
            compute=CPU,
        )
    )
    assert len(dataset) == 12
    own, given = settings("own"), settings("given", pairs=tmp_path / "pairs")
    for config in (own, given):
        distill(config)
    assert student_bytes(own.out) == student_bytes(given.out)
    assert not (given.out / "pairs").exists()


def test_a_network_to_be_sharded_is_on_the_device_while_it_generates(settings, monkeypatch):
    """For the pairs and for the report; before, in between and for the student it is in the host's memory."""
    places, to = [], Teacher.to
    monkeypatch.setattr(Parallelism, "is_sharded", True)
    monkeypatch.setattr(Parallelism, "shard", lambda *_, **__: None)
    monkeypatch.setattr(Parallelism, "wrap", lambda _, network: network)

    def record_place(self, device, precision=None, *, network_device=None):
        places.append("device" if network_device is None else "host")
        return to(self, device, precision, network_device=network_device)

    def record_call(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *words, **named: places.append(name) or function(*words, **named))

    monkeypatch.setattr(Teacher, "to", record_place)
    record_call(pair_loading, "make_teacher_pairs")
    record_call(report, "measure")
    distill(settings(report_images=4))
    assert places == ["host", "device", "make_teacher_pairs", "host", "device", "device", "measure", "measure"]


@pytest.mark.parametrize("side", [224, 16])
def test_lpips_is_the_distance_where_it_or_its_weights_are_given(side, settings):
    if not (assets := os.environ.get("DMDISTILL_ASSETS")):
        pytest.skip("LPIPS's weights: set DMDISTILL_ASSETS to the folder of lpips_vgg16.safetensors")
    weights = Path(assets) / "lpips_vgg16.safetensors"
    given = {"lpips_weights": weights} if side == 16 else {"distance": "lpips"}  # then the file is found
    config = settings(steps=2, batch_reg=1, pair_count=2, match=False, lpips_side=side, **given)
    distill(config)
    lpips = load_lpips(weights, resize=side)
    teacher, pairs = load_teacher(config.teacher), open_pairs(config.out / "pairs")

    def distance(step):
        z, y, index = pairs[pairs.rows(step, 1)]
        return lpips(Generator(teacher.denoiser)(z, teacher.condition(index)), y).item()

    logged = read_metrics(config.out)[-1]["loss_reg"]  # the mean of both steps, the second after one small update
    assert logged == pytest.approx((distance(0) + distance(1)) / 2, rel=0.1)


def test_a_resumed_run_keeps_its_options(settings, terminated, capsys):
    """Another value of one that decides the student is refused by name; of another one it is said."""
    config = settings(save_every=2)
    terminated(Distillation, "iterate", 3)
    with pytest.raises(TrainingStopped):
        distill(config)
    again, written = dataclasses.replace(config, resume=config.out), (config.out / "config.toml").read_bytes()
    for name, value in (("batch", 4), ("batch_reg", 3), ("weight_decay", 0.02), ("match_from", 0.5)):
        with pytest.raises(ValueError, match=rf"^--resume: {flag_name(name)} {value}, before "):
            distill(change(again, **{name: value}, lr=0.5))
    with pytest.raises(ValueError, match=r"^--steps 2: the run has taken 3 steps, give 3 or more"):
        distill(change(again, steps=2))
    assert (config.out / "config.toml").read_bytes() == written  # what is refused leaves no trace
    capsys.readouterr()
    assert distill(change(again, steps=7, log_every=1)) is not None
    assert "resumed with other options: --steps 7, before 6; --log-every 1, before 2\n" in capsys.readouterr().out
