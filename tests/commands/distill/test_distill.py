"""The commands from end to end, on a teacher small enough for seconds."""

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from dmdistill.commands.distill import command as distilling
from dmdistill.commands.distill import report as reporting
from dmdistill.commands.distill import setup as making
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.monitor import Watch
from dmdistill.commands.distill.report import draw_curves
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import generate_images
from dmdistill.commands.info.command import info
from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import overlay, parse_toml
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.commands.teach import command as teaching
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.core.generators import Generator
from dmdistill.data.image_tensors import to_uint8
from dmdistill.data.pairs import open_pairs
from dmdistill.distributed.data_parallel import Parallelism
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.lpips import load_lpips
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Teacher
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import configure
from helpers.feature_statistics import frechet_to_real

MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)
ADAPTERS = {"lora_student": 2, "lora_fake": 2}


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Drawing and timing take most of a run this small: only the tests that ask for `pictures` do it."""
    if "pictures" not in request.fixturenames:
        for name in ("draw_curves", "draw_comparison"):
            monkeypatch.setattr(reporting, name, lambda *_, **__: None)
        monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)


@pytest.fixture
def pictures():
    """Asks for a run's pictures and timings."""


@pytest.fixture
def settings(tiny_teacher, tmp_path):
    """A distillation of six steps."""

    def build(name="run", **changes):
        if ADAPTERS.keys() & changes.keys():
            pytest.importorskip("peft")
        base = configure(
            DistillConfig,
            teacher=str(tiny_teacher),
            out=tmp_path / name,
            pair_count=12,
            steps=6,
            batch=5,
            batch_reg=4,
            warmup=2,
            ema_halflives=(1.0, 3.0),
            log_every=2,
            sample_every=3,
            evaluate_every=3,
            report_images=8,
            save_every=4,
            ode=SolverOptions(solver_steps=3),
            compute=MACHINE,
        )
        return change(base, **changes)

    return build


def student_file(config):
    return (config.out / "student" / "model.safetensors").read_bytes()


def figures(folder):
    """The log without the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(folder)]


def test_the_same_seed_gives_the_same_student(settings):
    first, again, other = settings("a"), settings("b"), settings("c", seed=1)
    for config in (first, again, other):
        distilling.distill(config)
    assert student_file(first) == student_file(again) != student_file(other)
    assert figures(first.out) == figures(again.out)


@pytest.mark.parametrize(("stop", "changes"), [(0, {}), (3, {}), (3, ADAPTERS)], ids=["0", "3", "3-adapters"])
def test_interrupted_and_resumed_is_as_never_interrupted(stop, changes, settings, monkeypatch, capsys):
    whole, stopped = settings("whole", **changes), settings("stopped", **changes)
    distilling.distill(whole)
    iterate = distilling.Job.iterate

    def interrupting(self, step):
        losses = iterate(self, step)
        if step == stop:
            signal.raise_signal(signal.SIGINT)
        return losses

    monkeypatch.setattr(distilling.Job, "iterate", interrupting)
    assert distilling.distill(stopped) is None
    monkeypatch.setattr(distilling.Job, "iterate", iterate)
    assert f"stopped after step {stop + 1}" in capsys.readouterr().out
    assert not (stopped.out / "student").exists()
    distilling.distill(dataclasses.replace(stopped, resume=stopped.out))
    assert student_file(stopped) == student_file(whole)
    assert figures(stopped.out) == figures(whole.out)


def test_interrupted_while_pairs_are_made_it_can_be_resumed(settings, monkeypatch):
    whole, stopped = settings("whole"), settings("stopped")
    distilling.distill(whole)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dmdistill.data.pairs.save_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distilling.distill(stopped)
    distilling.distill(dataclasses.replace(stopped, resume=stopped.out))
    assert student_file(stopped) == student_file(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"lambda_reg": 0.0},
        {"match": False},
        {"fake_steps": 3},
        {"ode": SolverOptions(solver_steps=2, guidance=2.0)},
        {"ode": SolverOptions(solver="ddim", solver_steps=2)},
        {"lambda_end": 0.0, "lr_decay": False},
        {"match_pairs": True, "fake_steps": 2},
        {"lambda_reg": 0.0, "match_from": 0.5},
        {"ema_halflives": ()},
        {"weight": "sigma3", "min_t": 0.1, "max_t": 0.9, "save_dtype": "fp16"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_variant_runs(changes, settings):
    config = settings(**({"ode": SolverOptions(solver_steps=2)} | changes))
    student = distilling.distill(config)
    rows = read_metrics(config.out)
    losses = {key for row in rows for key in row if key.startswith("loss_")}
    regressed = config.lambda_reg > 0
    assert ("loss_kl" in losses, "loss_fake" in losses) == (config.match, config.match)
    assert ("loss_reg" in losses) == regressed
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["step"] for row in rows] == ([2, 3, 4, 6] if config.match else [2, 4, 6])
    z, cond = student.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    assert torch.isfinite(student.images(z, cond)).all()


def test_before_match_from_regression_is_alone(settings):
    both, alone = settings("both", match_from=0.67, log_every=1), settings("alone", match=False, log_every=1)
    for config in (both, alone):
        distilling.distill(config)
    rows = list(zip(read_metrics(both.out), read_metrics(alone.out), strict=True))
    assert [("loss_kl" in row, "loss_fake" in row) for row, _ in rows] == [(False, False)] * 4 + [(True, True)] * 2
    assert all(row["loss_reg"] == other["loss_reg"] for row, other in rows[:4])


def test_after_regress_until_matching_is_alone(settings):
    """Two further updates of the fake score are left out where it is not asked, and its noise is not drawn."""
    config = settings(match_from=0.34, regress_until=0.67, fake_steps=3, log_every=1)
    distilling.distill(config)
    losses = [{key for key in row if key.startswith("loss_")} for row in read_metrics(config.out)]
    regression, matching = {"loss_reg"}, {"loss_kl", "loss_fake"}
    assert losses == [regression] * 2 + [regression | matching] * 2 + [matching] * 2


def test_the_fake_score_follows_before_it_is_asked(settings):
    config = settings(match_from=0.67, fake_from=0.34, log_every=1)
    distilling.distill(config)
    assert ["loss_fake" in row for row in read_metrics(config.out)] == [False] * 2 + [True] * 4


def test_a_run_starts_from_a_student(settings):
    """It takes over every weight: a first step of no size leaves the student as it is."""
    first = distilling.distill(settings("first"))
    again = settings("again", start=str(settings("first").out), steps=1, lr=1e-12, ema_halflives=())
    student = distilling.distill(again)
    for mine, theirs in zip(student.network.parameters(), first.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def storages(*networks):
    """Every distinct storage of some networks' parameters, with its bytes."""
    tensors = [p.untyped_storage() for network in networks for p in network.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


def test_with_adapters_the_base_weights_are_there_once_and_stay(settings, monkeypatch):
    jobs, make = [], distilling.Job

    def kept(*arguments):
        jobs.append(make(*arguments))
        return jobs[0]

    monkeypatch.setattr(distilling, "Job", kept)
    config = settings(**ADAPTERS)
    distilling.distill(config)
    job, first = jobs[0], load_teacher(config.teacher)
    averages = [average.network for average in job.update_generator.emas]
    networks = [job.generator, job.fake, *averages]
    small = sum(p.nbytes for network in networks for name, p in network.named_parameters() if ".lora_" in name)
    base = sum(storages(job.teacher.network).values())
    assert sum(storages(job.teacher.network, *networks).values()) == base + small
    assert storages(job.teacher.network).items() <= storages(job.generator).items() & storages(job.fake).items()
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(job.teacher.network.state_dict()[name], tensor)
    state = torch.load(config.out / "checkpoints" / "step-00000006.pt", weights_only=True)
    for update in state["updates"].values():
        assert all(".lora_" in name for weights in (update["network"], *update["emas"]) for name in weights)


@pytest.mark.parametrize("which", ["lora_student", "lora_fake"])
def test_one_of_the_two_may_have_adapters(which, settings):
    config = settings(steps=2, **{which: 2})
    distilling.distill(config)
    names = load_file(config.out / "student" / "model.safetensors")
    assert [".lora_" in name for name in names] == [which == "lora_student"] * len(names)
    assert set(load_teacher(config.teacher).network.state_dict()).isdisjoint(names) == (which == "lora_student")


def test_a_student_of_adapters_is_stored_as_these_and_loads_with_its_teacher(
    settings, tiny_teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_teacher.parent)
    before = (tiny_teacher / "model.safetensors").read_bytes()
    config = settings(teacher=tiny_teacher.name, lr=0.03, **ADAPTERS)  # a path from here, which loads from anywhere
    made = distilling.distill(config)
    monkeypatch.chdir(tmp_path)
    assert (tiny_teacher / "model.safetensors").read_bytes() == before
    stored = load_file(config.out / "student" / "model.safetensors")
    assert all(".lora_" in name for name in stored)
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if ".lora_B." in name)
    described = json.loads((config.out / "student" / "config.json").read_text())
    assert (described["lora"], described["teacher"]) == ({"rank": 2, "alpha": 2}, str(tiny_teacher.resolve()))
    assert described["distilled"]["teacher"] == str(tiny_teacher.resolve())
    loaded = load_model(str(config.out))
    z, cond = loaded.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.images(z, cond), made.images(z, cond), rtol=1e-5, atol=1e-5)
    start = Generator(load_teacher(str(tiny_teacher)).denoiser)(z, cond)
    assert (loaded.images(z, cond) - start).abs().max() > 1e-3
    drawn = sample(SampleConfig(str(config.out), out=tmp_path / "x.png", count=3, compute=MACHINE))
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_starts_from_a_student_of_adapters(rank, settings):
    """With adapters it takes them over, without it trains all of what they and the teacher are together."""
    earlier = settings("first", lr=0.03, **ADAPTERS)
    first = distilling.distill(earlier)
    again = settings("again", start=str(earlier.out), lora_student=rank, steps=1, lr=1e-12, ema_halflives=())
    student = distilling.distill(again)
    z, cond = student.sample_inputs(3, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student.images(z, cond), first.images(z, cond), rtol=1e-5, atol=1e-5)
    assert any(".lora_" in name for name in student.network.state_dict()) == (rank > 0)


@pytest.mark.parametrize(
    ("earlier", "match"),
    [(0, "expected a student of lora {'rank': 2, 'alpha': 2}, its lora is None"), (3, "its lora is {'rank': 3")],
)
def test_adapters_start_from_no_student_of_another_form(earlier, match, settings):
    first, again = settings("first", steps=2, lora_student=earlier), settings("again", lora_student=2)
    distilling.distill(first)
    again = dataclasses.replace(again, start=str(first.out))
    with pytest.raises(ValueError, match=match):
        distilling.distill(again)
    assert not again.out.exists()


@pytest.mark.parametrize("flag", ["lora_student", "lora_fake"])
def test_adapters_need_peft(flag, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    name = f"--{flag.replace('_', '-')}"
    with pytest.raises(ValueError, match=rf"^{name} needs peft \(.*\): pip install 'dmdistill\[diffusers\]'$"):
        distilling.distill(change(settings(), **{flag: 2}))


@pytest.mark.parametrize("changes", [{}, ADAPTERS], ids=["whole", "adapters"])
def test_checkpointing_changes_no_student(changes, settings):
    files = []
    for checkpointing in ("none", "norms", "blocks"):
        config = settings(checkpointing, steps=2, checkpointing=checkpointing, **changes)
        distilling.distill(config)
        files.append(student_file(config))
    assert files[0] == files[1] == files[2]


def test_a_run_leaves_what_it_promises(settings, tiny_teacher, pictures):
    before = (tiny_teacher / "model.safetensors").read_bytes()
    config = settings(ode=SolverOptions(), pair_count=8)
    student = distilling.distill(config)
    assert (tiny_teacher / "model.safetensors").read_bytes() == before
    assert (student.name, student.evaluations, student.config["kind"]) == ("tiny-student", 1, "student")
    assert {file.name for file in config.out.iterdir()} == {
        *("checkpoints", "comparison.png", "config.toml", "metrics.jsonl", "pairs"),
        *("report.json", "report.png", "samples", "student"),
    }
    assert sorted(file.name for file in (config.out / "samples").iterdir()) == ["step-000003.png", "step-000006.png"]
    text = (config.out / "config.toml").read_text()
    assert overlay(DistillConfig(), parse_toml(text, "config.toml"), "") == config

    report = json.loads((config.out / "report.json").read_text())
    assert [report[who]["evaluations_per_image"] for who in ("teacher", "student")] == [35, 1]
    assert [report[who]["model"] for who in ("teacher", "student")] == ["tiny", "tiny-student"]
    assert report["seconds"]["distillation"] == pytest.approx(read_metrics(config.out)[-1]["seconds"], abs=0.01)
    assert report["seconds"]["pairs"] > 0
    assert report["teacher"]["seconds_per_image"] > report["student"]["seconds_per_image"] > 0
    for name in ("report.png", "comparison.png", "samples/step-000006.png"):
        with Image.open(config.out / name) as picture:
            picture.verify()


def test_curves_are_drawn_of_what_was_measured_alone(tmp_path, monkeypatch):
    titles, save = [], Figure.savefig

    def noted(figure, *words, **named):
        titles.append([axes.get_title() for axes in figure.axes])
        save(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", noted)
    first = {"step": 1, "seconds": 1.0, "loss_kl": 0.5}
    for row in (first | {"gradient_fake": 2.0}, first | {"frechet_raw": 2.0, "sample_mean": 0.0, "gap_0": 0.1}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        draw_curves(tmp_path)
    gaps, spread = "gap |mu_fake - mu_real| per noise bin", "samples' mean and std"
    assert titles == [["losses", "gradient norms"], ["Frechet distance", "losses", gaps, spread]]


def test_the_student_is_the_generator_of_the_longest_average(settings, tmp_path, rng):
    """What the checkpoint holds, what is stored and what `sample` draws are one."""
    config = settings()
    distilling.distill(config)
    student, teacher = load_model(str(config.out / "student")), load_teacher(config.teacher)
    state = torch.load(config.out / "checkpoints" / "step-00000006.pt", weights_only=True)
    average = {name.removeprefix("denoiser."): w for name, w in state["updates"]["generator"]["emas"][-1].items()}
    for name, tensor in student.denoiser.state_dict().items():
        assert torch.equal(tensor, average[name])

    drawn = sample(SampleConfig(str(config.out), out=tmp_path / "x.png", count=7, columns=4, compute=MACHINE))
    z, _ = student.sample_inputs(7, rng=rng)
    teacher.denoiser.load_state_dict(average)
    expected = Generator(teacher.denoiser)(z, teacher.conditions.select(torch.arange(7)))
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)
    with Image.open(tmp_path / "x.png") as picture:
        first = np.array(picture)[0:16:2, 0:16:2]
    assert np.array_equal(first, to_uint8(drawn[0, 0]).numpy())


def test_a_step_towards_the_pairs_is_made(settings):
    """Regression alone, for a while: the student comes closer to the teacher's images than the teacher asked once."""
    config = settings(match=False, steps=250, pair_count=64, batch_reg=32, lr=3e-3, log_every=50, sample_every=300)
    config = change(config, evaluate_every=300, save_every=300, ema_halflives=(5.0,))
    student = distilling.distill(config)
    z, y, index = open_pairs(config.out / "pairs")[range(64)]
    cond = student.condition(index)
    start = Generator(load_teacher(config.teacher).denoiser)(z, cond)
    after, before = ((x - y).abs().mean() for x in (student.images(z, cond), start))
    assert after < 0.5 * before


def test_pairs_made_before_give_the_student_of_pairs_made_within(settings, tiny_teacher, tmp_path):
    made = pairs(
        configure(
            PairsConfig,
            teacher=str(tiny_teacher),
            out=tmp_path / "pairs",
            count=12,
            ode=SolverOptions(solver_steps=3),
            compute=MACHINE,
        )
    )
    assert len(made) == 12
    within, given = settings("within"), settings("given", pairs=tmp_path / "pairs")
    for config in (within, given):
        distilling.distill(config)
    assert student_file(within) == student_file(given)
    assert not (given.out / "pairs").exists()


def test_a_network_to_be_sharded_is_on_the_device_while_it_draws(settings, monkeypatch):
    """As the pairs are made, and for the report; from the start until then, and in between, it is at home."""
    places, to = [], Teacher.to
    monkeypatch.setattr(Parallelism, "is_sharded", True)
    monkeypatch.setattr(Parallelism, "shard", lambda *_: None)
    monkeypatch.setattr(Parallelism, "wrap", lambda _, network: network)

    def told(self, device, precision=None, *, network_device=None):
        places.append("device" if network_device is None else "home")
        return to(self, device, precision, network_device=network_device)

    def noted(name):
        function = getattr(owners[name], name)
        return lambda *words, **named: places.append(name) or function(*words, **named)

    monkeypatch.setattr(Teacher, "to", told)
    owners = {"pairs_of": making, "measure": reporting}
    for name, owner in owners.items():
        monkeypatch.setattr(owner, name, noted(name))
    distilling.distill(settings(report_images=4))
    assert places == ["home", "device", "pairs_of", "home", "device", "device", "measure", "measure"]


@pytest.fixture
def lesson(idx_folder, tmp_path):
    def build(name="teaching", **changes):
        base = configure(
            TeachConfig,
            data=idx_folder,
            out=tmp_path / name,
            network=NetworkOptions(model_channels=16, channel_mult=(1,), num_blocks=1),
            steps=6,
            batch=4,
            warmup=2,
            ema_halflife=2.0,
            log_every=2,
            save_every=4,
            compute=MACHINE,
        )
        return change(base, **changes)

    return build


def test_teaching_writes_a_teacher_and_resumes_bit_for_bit(lesson, terminated, rng):
    whole, stopped = lesson("whole"), lesson("stopped")
    taught = teaching.teach(whole)
    loaded = load_teacher(str(whole.out))
    assert (loaded.shape, len(loaded.conditions), loaded.evaluations) == ((1, 12, 12), 10, 35)
    z, cond = loaded.sample_inputs(2, rng=rng)
    torch.testing.assert_close(loaded.images(z, cond), taught.images(z, cond), rtol=1e-4, atol=1e-4)

    asked = terminated(teaching, "denoising_loss", 3)
    assert teaching.teach(stopped) is None
    teaching.teach(dataclasses.replace(stopped, resume=stopped.out))
    assert len(asked) == 6
    files = [config.out / "teacher" / "model.safetensors" for config in (whole, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert figures(whole.out) == figures(stopped.out)


def test_a_judge_measures_a_run_and_picks_the_best_state(feature_extractor, judged, settings):
    config = settings(teacher=judged, evaluate_images=40, lr=0.02)
    student = distilling.distill(config)
    found = {(row["step"], key): row[key] for row in read_metrics(config.out) for key in row if "frechet" in key}
    step, key = min(found, key=found.get)
    told = student.config["distilled"]
    assert (told["step"], f"frechet_{told['average']}") == (step, key)
    assert step < 6, "a run that is best at its end shows nothing here"
    drawn = generate_images(student, 40, batch=7, seed=config.seed + 2)
    classifier = load_classifier_features(str(feature_extractor), torch.device("cpu"))
    assert frechet_to_real(classifier, drawn) == pytest.approx(found[step, key], rel=1e-4)
    report = json.loads((config.out / "report.json").read_text())
    name = f"frechet_{classifier.name}"
    assert all(math.isfinite(report[who]["metrics"][name]) for who in ("teacher", "student"))

    again = evaluate(EvaluateConfig(str(config.out), images=8, batch=500, seed=config.seed + 3, compute=MACHINE))
    assert again["metrics"][name] == pytest.approx(report["student"]["metrics"][name], rel=1e-6)

    last = distilling.distill(change(config, out=config.out.with_name("last"), keep="last"))
    told = last.config["distilled"]
    assert told["step"] == 6
    assert found[6, f"frechet_{told['average']}"] == min(found[6, name] for at, name in found if at == 6)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_judged_run_is_resumed_to_the_same_student(stop, judged, settings, monkeypatch):
    """Killed after the best state was kept, before or after a checkpoint; the log and the state are made again."""
    changes = {"teacher": judged, "evaluate_images": 20, "evaluate_every": 1, "save_every": 2, "lr": 0.02}
    whole, killed = settings("whole", **changes), settings("killed", **changes)
    distilling.distill(whole)
    evaluate_step = Watch.evaluate

    def killing(self, step):
        figures = evaluate_step(self, step)
        if step == stop:
            raise KeyError("killed")
        return figures

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "evaluate", killing)
        with pytest.raises(KeyError, match="killed"):
            distilling.distill(killed)
    distilling.distill(dataclasses.replace(killed, resume=killed.out))
    assert student_file(killed) == student_file(whole)
    assert figures(killed.out) == figures(whole.out)


def test_evaluate_writes_what_it_returns(tiny_teacher, tmp_path):
    report = evaluate(EvaluateConfig(str(tiny_teacher), images=4, json=tmp_path / "x.json", compute=MACHINE))
    assert json.loads((tmp_path / "x.json").read_text()) == report
    assert (report["model"], report["evaluations_per_image"], report["images"]) == ("tiny", 35, 0)
    assert report["metrics"] == {}, "it has no judge: no image was drawn"


def test_info_says_what_and_where(settings, tiny_teacher, capsys):
    info(InfoConfig(str(tiny_teacher)))
    told = capsys.readouterr().out
    assert all(word in told for word in ("tiny, a teacher", "SongUNet", "1 x 8 x 8", "35", "MIT"))
    config = settings(lambda_reg=0.0)
    distilling.distill(config)
    capsys.readouterr()
    info(InfoConfig(str(config.out)))
    told = capsys.readouterr().out
    assert all(word in told for word in ("tiny-student, a student", "loss_kl", "step", "6"))


def test_samples_have_the_labels_asked_for(tiny_teacher, tmp_path):
    drawn = sample(SampleConfig(str(tiny_teacher), out=tmp_path / "x.png", count=5, labels=(7, 2), compute=MACHINE))
    teacher = load_teacher(str(tiny_teacher))
    z, _ = teacher.sample_inputs(5, rng=torch.Generator().manual_seed(0))
    expected = teacher.images(z, teacher.conditions.select(torch.tensor([7, 2, 7, 2, 7])))
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [224, 16])
def test_lpips_is_the_distance_where_its_weights_are_given(side, settings):
    if not (assets := os.environ.get("DMDISTILL_ASSETS")):
        pytest.skip("LPIPS's weights: set DMDISTILL_ASSETS to the folder of lpips_vgg16.safetensors")
    weights = Path(assets) / "lpips_vgg16.safetensors"
    config = settings(steps=2, batch_reg=1, pair_count=2, match=False, lpips_weights=weights, lpips_side=side)
    distilling.distill(config)
    lpips = load_lpips(weights, resize=side)
    teacher, pairs = load_teacher(config.teacher), open_pairs(config.out / "pairs")

    def distance(step):
        z, y, index = pairs.batch(step, 1)
        return lpips(Generator(teacher.denoiser)(z, teacher.condition(index)), y).item()

    logged = read_metrics(config.out)[-1]["loss_reg"]  # the mean of both steps, the second after one small update
    assert logged == pytest.approx((distance(0) + distance(1)) / 2, rel=0.1)
