"""Each method of the family as a run: it ends, is resumed bit for bit, and accumulates gradients to the same losses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmdistill.commands.distill import command
from dmdistill.commands.distill.batches import BatchSource
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.initialization import check_student_times
from dmdistill.commands.distill.real_data import load_real_images
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.commands.distill.setup import Distillation, guided_teacher, set_up
from dmdistill.commands.options import change, check
from dmdistill.commands.presets import from_method
from dmdistill.core.denoisers import GuidedDenoiser
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.distributed.process_group import SINGLE_PROCESS
from dmdistill.models.load import load_model, load_teacher
from helpers.method_runs import RUNS, method_run
from helpers.runs import logged_values, skip_figures, student_bytes


@pytest.fixture
def run(tiny_teacher, class_pictures, tmp_path, monkeypatch):
    """name, options -> the configuration of a run of four steps."""
    skip_figures(monkeypatch)

    def build(name, out="run", **changes):
        return method_run(name, tiny_teacher, class_pictures, tmp_path / out, **changes)

    return build


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_each_method_is_resumed_bit_for_bit(name, run, monkeypatch):
    config = run(name)
    check(config)
    student = distill(config)
    assert student.evaluations == config.student.step_count
    rows = logged_values(config.out)
    assert all(np.isfinite(value) for row in rows for key, value in row.items() if key.startswith("loss_"))
    assert ("loss_discriminator" in rows[-1]) == (config.gan.data is not None)
    assert ("loss_gan" in rows[-1]) == (config.gan.data is not None and config.method != "sida")

    other, iterate = run(name, "other"), Distillation.iterate

    def interrupted(self, step):
        if step == 3:
            raise MemoryError
        return iterate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "iterate", interrupted)
        with pytest.raises(MemoryError):
            distill(other)
    distill(change(other, resume=other.out))
    assert student_bytes(other.out) == student_bytes(config.out)
    assert logged_values(other.out) == rows


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("dmd2-sde", "dmd2-gan", "sid") else pytest.mark.slow)
        for name in RUNS
        if "f-distill" not in name and name != "sida"
    ],
)
def test_accumulated_gradients_are_those_of_the_full_batch(name, run):
    """f-distill and SiDA normalize by means over the images that are computed at once."""
    losses = []
    for out, accumulate in (("full", 1), ("parts", 2)):
        config = run(name, out, accumulate=accumulate, steps=3)
        distill(config)
        losses.append([{k: v for k, v in row.items() if k.startswith("loss_")} for row in logged_values(config.out)])
    for full, parts in zip(*losses, strict=True):
        assert full == pytest.approx(parts, rel=1e-3, abs=1e-6)


def test_a_discriminator_can_learn_without_effect_on_the_generator(run):
    """Of --gan-weight 0, an ablation."""
    config = run("dmd2-on-teacher", gan_weight=0.0, steps=1)
    check(config)
    distill(config)
    (row,) = logged_values(config.out)
    assert "loss_discriminator" in row
    assert "loss_gan" not in row


def test_a_student_of_several_steps_is_loaded_as_it_was(run, rng):
    config = run("dmd2-ode")
    student = distill(config)
    entries = json.loads((config.out / "student" / "config.json").read_text())
    assert entries["timesteps"] == list(student.timesteps)
    assert entries["transition"] == "ode"
    card = (config.out / "student" / "README.md").read_text()
    assert "An image generator of 3 steps" in card
    assert "by DMD2 (Yin et al., NeurIPS 2024)" in card
    loaded = load_model(str(config.out))
    assert loaded.evaluations == 3
    z, cond = loaded.sample_inputs(2, rng=rng)
    torch.testing.assert_close(loaded.generate(z, cond), student.generate(z, cond), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"method": "dmd2", "r1": 1.0}, "--data"),
        ({"method": "f-distill"}, "--data"),
        ({"method": "sida"}, "--data"),
        ({"method": "dmd2", "student_inputs": "data", "student_steps": 2}, "--data"),
        ({"method": "dmd", "data": "x"}, "--data x"),
        ({"method": "dmd", "student_steps": 2}, "--method dmd"),
        ({"method": "sid", "student_steps": 2}, "--method sid"),
        ({"method": "dmd2", "transition": "ode"}, "--student-steps"),
        ({"method": "dmd2", "student_timesteps": (1.0, 2.0)}, "--student-timesteps 1 2"),
        ({"method": "dmd2", "lambda_reg": 1.0}, "--lambda-reg 1.0"),
        ({"method": "dmd2", "divergence": "kl"}, "--divergence kl"),
        ({"method": "dmd2", "match": False}, "--no-match, which is for --method dmd: --method dmd2 always matches"),
        ({"method": "dmd2", "time_shift": 0.0}, "--time-shift 0"),
        ({"method": "sid", "time_shift": 3.0}, "--time-shift 3"),
        ({"method": "sid", "ratio_ema": 0.5}, "--ratio-ema 0.5"),
        ({"method": "f-distill", "data": "x", "ratio_ema": 1.0}, "--ratio-ema 1"),
        ({"method": "dmd2", "augment_fake": 0.12}, "--augment-fake 0.12"),
        ({"method": "sid", "augment_fake": 2.0}, "--augment-fake 2"),
        ({"method": "sid", "clip_value_fake": 0.0}, "--clip-value-fake 0"),
        ({"method": "sid", "adam_eps": 0.0}, "--adam-eps 0"),
        ({"method": "dmd", "lambda_reg": 1.0, "match": False, "ida": 0.1}, "--ida with --no-match"),
        ({"method": "dmd2", "lora_student": 2, "ida": 0.1}, "--ida 0.1 with --lora-student 2"),
        ({"method": "dmd2", "ida": 1.0}, "--ida 1.0"),
        ({"method": "dmd2", "real_guidance": (1.0, 2.0, 3.0)}, "--real-guidance 1 2 3, "),
        ({"method": "dmd2", "real_guidance": (8.0, 3.0)}, "--real-guidance 8 3"),
        ({"method": "dmd2", "real_guidance": (-1.0,)}, "--real-guidance -1"),
        ({"method": "dmd2", "guidance_cap": 0.5}, "--guidance-cap 0.5"),
        ({"method": "sid", "guidance_cap": 1.0}, "--guidance-cap 1.0"),
        ({"method": "decoupled-dmd", "real_guidance": (3.0, 8.0)}, "--real-guidance"),
        ({"method": "sida", "data": "x", "r1": 5.0}, "--r1 5.0, which is for --method dmd2 or f-distill, not for sida"),
        ({"method": "dmd2", "pairs": Path("x")}, "--pairs x, which --method dmd2 does not use"),
        ({"method": "sid", "pair_count": 5}, "--pair-count 5"),
        ({"method": "f-distill", "data": "x", "batch_reg": 5}, "--batch-reg 5"),
        ({"method": "dmd2", "distance": "huber"}, "--distance huber"),
        ({"method": "dmd2", "lpips_weights": Path("x")}, "--lpips-weights x"),
        ({"method": "dmd2", "lpips_side": 0}, "--lpips-side 0"),
        ({"method": "dmd2", "distance": "lpips", "decoder": "x"}, "--distance lpips"),
        ({"method": "sida", "data": "x", "discriminator": "teacher"}, "--discriminator teacher, which is"),
        ({"method": "dmd2", "steps": 5, "generator_from": 5}, "--generator-from 5 with --steps 5"),
        ({"method": "sida", "data": "x", "steps": 5, "gan_from": 7}, "--gan-from 7 with --steps 5"),
        ({"method": "dmd2", "data": "x", "gan_weight": -1.0}, "--gan-weight -1"),
        ({"method": "dmd", "lambda_reg": 0.0, "generator_from": 5}, "--generator-from 5, which is for --method dmd2"),
    ],
)
def test_options_that_contradict_a_method_are_refused_by_their_flags(options, flag):
    method = options.pop("method")
    with pytest.raises(ValueError, match=flag):
        check(from_method(DistillConfig, method, **options))


@pytest.mark.parametrize(
    ("method", "options", "flag"),
    [
        (
            "sid",
            {"guidance": 2.0},
            "--method sid with a guidance scale of 2.* give --guidance 1.* or use --method dmd2",
        ),
        ("decoupled-dmd", {"guidance": 1.0}, "--guidance above 1"),
        ("dmd2", {"time_shift": 3.0}, "--time-shift 3, .* not a flow"),
        ("dmd2", {"student_timesteps": (2.5, 0.0)}, "--student-timesteps 2.5 0, expected times from 0.002 to 80"),
        ("sid", {"student_timesteps": (0.0019,)}, "--student-timesteps 0.0019, expected times from 0.002"),
        ("sid", {"student_timesteps": (399.0,)}, "--student-timesteps 399, expected times from 0.002 to 80"),
        ("sid", {"augment_fake": 0.12}, "--augment-fake 0.12, .* tiny takes no labels"),
    ],
)
def test_options_that_do_not_fit_the_teacher_are_refused(method, options, flag, tiny_teacher, tmp_path):
    config = from_method(DistillConfig, method, teacher=str(tiny_teacher), out=tmp_path / "run", **options)
    with pytest.raises(ValueError, match=flag):
        distill(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("schedule", "least", "below", "meaning"),
    [
        (EDM(), 0.002, 0.001, "sigma"),
        (VP.linear_betas(), 0.0, -1.0, "timestep"),
        (Flow(), 0.001, 0.0, "share"),
    ],
)
def test_a_students_times_are_those_of_the_teachers_schedule(schedule, least, below, meaning):
    teacher = SimpleNamespace(name="tiny", denoiser=SimpleNamespace(schedule=schedule))
    check_student_times(change(DistillConfig(), student_timesteps=(schedule.t_max, least)), teacher)
    for odd in (below, schedule.t_max + 1):
        with pytest.raises(ValueError, match=f"from {least:g} to {schedule.t_max:g}: a time of tiny is .*{meaning}"):
            check_student_times(change(DistillConfig(), student_timesteps=(odd,)), teacher)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"guidance_cap": 1.0}, "--guidance-cap 1 without guidance"),
        ({"guidance_cap": 1.0, "guidance": 2.0, "real_guidance": (1.0,)}, "--guidance-cap 1 without guidance"),
    ],
)
def test_guidance_without_effect_is_refused(options, flag, tiny_teacher, tmp_path):
    config = from_method(DistillConfig, "dmd2", teacher=str(tiny_teacher), out=tmp_path / "run", **options)
    with pytest.raises(ValueError, match=flag):
        distill(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "scale", "scale_range"),
    [
        ({}, 2.0, None),
        ({"guidance_cap": 1.0}, 2.0, None),
        ({"real_guidance": (1.25,)}, 1.25, None),
        ({"real_guidance": (1.0,)}, 1.0, None),
        ({"real_guidance": (3.0, 8.0), "guidance_cap": 1.0}, 5.5, (3.0, 8.0)),
    ],
)
def test_mu_real_has_a_guidance_of_its_own_and_pairs_keep_the_teachers(options, scale, scale_range, tiny_teacher):
    teacher = replace(load_teacher(str(tiny_teacher)), guidance=2.0)
    real = guided_teacher(change(DistillConfig(), **options), teacher)
    assert isinstance(real, GuidedDenoiser)
    assert (real.scale, real.scale_range, real.norm_cap) == (scale, scale_range, options.get("guidance_cap", 0.0))
    assert real.denoiser is teacher.denoiser
    assert teacher.guided_denoiser.scale == 2


@pytest.mark.parametrize("name", ["dmd2-guided", "dmd2-gan-lora"])
def test_the_fake_score_moves_towards_the_student(name, run, monkeypatch):
    """With vanishing learning rates their difference is (1 - w)^n of the first, in each weight or adapter."""
    pairs, first = [], []

    def set_up_apart(*arguments, **options):
        run = set_up(*arguments, **options)
        generator = [p for p in run.generator.parameters() if p.requires_grad]
        pairs.extend(zip(fake_parameters(run), generator, strict=True))
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.add_(1)
                first.append(mine - theirs)
        return run

    monkeypatch.setattr(command, "set_up", set_up_apart)
    config = run(name, lr=1e-12, lr_fake=1e-12, weight_decay=0.0, r1=0.0, ida=0.1)
    distill(config)
    assert pairs
    for (mine, theirs), difference in zip(pairs, first, strict=True):
        torch.testing.assert_close((mine - theirs).detach(), difference * 0.9**config.steps, rtol=1e-4, atol=1e-5)


def fake_parameters(run):
    """The fake score's parameters in training, without a discriminator's."""
    fake = run.fake.denoiser if hasattr(run.fake, "head") else run.fake
    return [p for p in fake.parameters() if p.requires_grad]


def test_sidas_discriminator_compares_images_of_the_same_classes(run):
    config = run("sida")
    teacher = load_teacher(config.teacher)
    real = load_real_images(str(config.gan.data), teacher, device=torch.device("cpu"))
    source = BatchSource(config, teacher, torch.Generator().manual_seed(0), SINGLE_PROCESS, None, real)
    batch = source.batch(1, PhaseSchedule(config).batch_needs(1))
    assert len(batch.z_fake) == len(batch.real) == config.fake_score.fake_steps * config.batch
    assert torch.equal(batch.cond_fake.one_hot, batch.cond_real.one_hot)
    assert not torch.equal(batch.cond.one_hot, batch.cond_real.one_hot[: config.batch])
