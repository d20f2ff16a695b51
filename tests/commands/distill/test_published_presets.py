"""Presets with the settings of methods after DMD: each trains a tiny network of its kind, and its numbers add up."""

from math import log2

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.monitor import Monitor
from dmdistill.commands.distill.objectives import Networks, Objectives
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.commands.options import change, check, option_values
from dmdistill.commands.plan.command import plan
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import from_preset, preset_names
from dmdistill.core.losses import pseudo_huber, weight_eq8
from dmdistill.core.times import UniformTimes
from dmdistill.models.load import load_teacher
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet
from helpers.configs import CPU
from helpers.runs import logged_values

FAMILY = ("dmd2", "fdistill", "sid", "sida")
PRESETS = [name for name in preset_names() if set(name.split("-")[1:2]) & {*FAMILY} and not name.startswith("fashion")]
SMALL = {  # sizes, and how often something happens
    "steps": 2,
    "batch": 2,
    "solver_steps": 2,
    "log_every": 1,
    "sample_every": 2,
    "evaluate_every": 2,
    "evaluate_images": 2,
    "report_images": 0,
    "save_every": 2,
    "compute": CPU,
}


def cifar10(edm, folder):
    """EDM's network at its three resolutions, of 32 x 32 images in ten classes, with augmentation labels."""
    sizes = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 9}
    sizes |= {
        "model_channels": 4,
        "channel_mult": [1, 1, 1],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.13,
    }
    return edm.write(folder / "cifar10.pkl", randomized(SongUNet(**sizes)), sizes)


def imagenet64(edm, folder):
    """ADM, of 16 x 16 images in ten classes."""
    sizes = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 0}
    sizes |= {"model_channels": 32, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8]}
    return edm.write(folder / "imagenet64.pkl", randomized(DhariwalUNet(**sizes)), sizes)


def randomized(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def pixels(edm, tmp_path_factory):
    """name -> the teacher of that kind, written once."""
    folder = tmp_path_factory.mktemp("teachers")
    return {"cifar10": cifar10(edm, folder), "imagenet64": imagenet64(edm, folder)}


@pytest.fixture
def images(tmp_path):
    """side -> a folder of two pictures of each of ten classes, with captions."""

    def write(side):
        rng = np.random.default_rng(0)
        for label in range(10):
            (tmp_path / "images" / str(label)).mkdir(parents=True)
            for number in range(2):
                file = tmp_path / "images" / str(label) / f"{number}.png"
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
                file.with_suffix(".txt").write_text("red square")
        return tmp_path / "images"

    return write


@pytest.fixture
def run(pixels, images, tiny_pipeline, tmp_path, monkeypatch):
    """name, options -> the configuration of a preset's run of two steps, with what it wants."""
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)
    monkeypatch.setattr(Monitor, "hooks", [])  # which take longer than two steps

    def build(name, family="", **options):
        kind, preset = name.split("-")[0], from_preset(DistillConfig, name)
        phases = {"generator_from": min(preset.score.generator_from, 1), "gan_from": min(preset.gan.gan_from, 1)}
        pairs = {"batch_reg": 2, "pair_count": 2} if preset.regression.lambda_reg else {}
        options = SMALL | phases | pairs | {"out": tmp_path / name} | options
        if kind in pixels:
            options["teacher"] = str(pixels[kind])
            side = {"cifar10": 32, "imagenet64": 16}[kind]
        else:
            (tmp_path / "prompts.txt").write_text("red\nblue circle\n")
            family = family or {"sd15": "stable_diffusion", "sdxl": "sdxl", "flow": "sd3"}[kind]
            options |= {"teacher": str(tiny_pipeline(family)), "prompts": str(tmp_path / "prompts.txt")}
            side = 16
        if preset.gan.data or preset.gan.gan_weight != DistillConfig().gan.gan_weight:
            options["data"] = str(images(side))
        if preset.memory.lora_student:
            pytest.importorskip("peft")
            options |= {"lora_student": 2, "lora_fake": 2}
        if preset.regression.distance == "lpips":  # its weights are not here
            options |= {"distance": "huber", "decoder": None}
        return change(preset, **options)

    return build


@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "") for name in PRESETS), pytest.param("flow-dmd2-lora", "flux", marks=pytest.mark.slow)],
)
def test_a_preset_trains_a_network_of_its_kind(name, family, run):
    config = run(name, family)
    check(config)
    student = distill(config)
    assert student.timesteps == pytest.approx(config.student.student_timesteps)
    rows = logged_values(config.out)
    losses = {key: value for row in rows for key, value in row.items() if key.startswith("loss_")}
    assert len(rows) == 2
    assert all(np.isfinite(value) for value in losses.values())
    assert ("loss_discriminator" in losses) == (config.gan.data is not None)
    assert ("loss_fake" in losses) == ("start" not in name)


def test_every_method_after_dmd_has_a_preset():
    assert {from_preset(DistillConfig, name).method for name in PRESETS} == {"dmd", "dmd2", "f-distill", "sid", "sida"}


@pytest.mark.parametrize(
    ("second", "first"),
    [
        ("imagenet64-dmd2-gan", "imagenet64-dmd2"),
        pytest.param("sd15-dmd2-gan", "sd15-dmd2", marks=pytest.mark.slow),
        pytest.param("sdxl-dmd2-1step", "sdxl-dmd2-1step-start", marks=pytest.mark.slow),
    ],
)
def test_a_second_stage_starts_from_the_first(second, first, run):
    config = run(first, lr=1.0, save_dtype="fp32")
    before = distill(config)
    after = distill(run(second, start=str(config.out), steps=1, generator_from=0, lr=1e-9, save_dtype="fp32"))
    assert after.timesteps == before.timesteps
    teacher = load_teacher(config.teacher).network.state_dict()
    for name, weight in after.network.state_dict().items():
        torch.testing.assert_close(weight, before.network.state_dict()[name], rtol=0, atol=1e-7)
    assert any((weight - teacher[name]).abs().max() > 1e-4 for name, weight in after.network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "images"),
    [("cifar10-sid", 800e6), ("cifar10-sida", 300e6), ("imagenet64-sid", 1000e6)],
)
def test_sids_lengths_are_the_authors_in_images(name, images):
    """Theirs count images; EMAs and phases too, and their losses are sums over an image's values."""
    config = from_preset(DistillConfig, name)
    assert config.steps * config.batch == pytest.approx(images, rel=1e-5)
    halflife = {"cifar10": 500e3, "imagenet64": 2e6}[name.split("-")[0]]
    assert config.optimizer.ema_halflives[0] * config.batch == pytest.approx(halflife, rel=1e-3)
    if name == "cifar10-sida":
        first, gan = config.score.generator_from, config.gan.gan_from
        assert (first - 1) * 256 <= 100_000 < first * 256
        assert (gan - 1) * 256 <= 200_000 < gan * 256
        assert config.fake_score.clip_value_fake * 3 * 32 * 32 == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "iterations", "per_step"),
    [
        ("imagenet64-dmd2", 410_000, 5),
        ("imagenet64-dmd2-gan", 140_000, 5),
        ("sd15-dmd2", 40_000, 10),
        ("sd15-dmd2-gan", 5_000, 10),
        ("sdxl-dmd2-4step", 20_000, 5),
        ("sdxl-dmd2-1step", 25_000, 5),
        ("cifar10-fdistill", 100_000, 5),
        ("imagenet64-fdistill", 600_000, 5),
    ],
)
def test_dmd2s_and_fdistills_lengths_are_the_authors_in_iterations(name, iterations, per_step):
    """Of DMD2 all of them train the fake score, of f-distill all but those of the generator."""
    config = from_preset(DistillConfig, name)
    assert (config.steps - config.score.generator_from) * per_step == iterations
    assert config.fake_score.fake_steps == per_step - (config.method == "f-distill")
    halflives = sorted(config.optimizer.ema_halflives)
    expected = (
        [-1 / log2(rate) / per_step for rate in (0.9996, 0.9999, 0.99995)] if config.method == "f-distill" else []
    )
    assert halflives == pytest.approx(expected, rel=1e-3)


def test_the_flow_presets_times_are_shifted_in_all_losses():
    """From .02 on after the shift, as there; the student's steps are four equal parts, with shift 3."""
    config = from_preset(DistillConfig, "flow-dmd2-lora")
    shift, low = config.matching.time_shift, config.matching.min_t
    assert shift * low / (1 + (shift - 1) * low) == pytest.approx(0.02, abs=5e-4)
    parts = [1.0, 0.75, 0.5, 0.25]
    assert config.student.student_timesteps == pytest.approx([3 * part / (1 + 2 * part) for part in parts])
    network = torch.nn.Identity()
    objectives = Objectives(PhaseSchedule(config), Networks(network, network, network), pseudo_huber, weight_eq8, abs)
    objective = objectives.at(0)
    assert [term.times for term in objective.terms] == [UniformTimes(0.004, 1.0, 5.0)]
    assert [term.times for term in objective.critics["fake"]] == [UniformTimes(0.0, 1.0, 5.0)]


def test_presets_that_need_images_ask_for_them():
    for name in ("sd15-dmd2-gan", "sdxl-dmd2-4step", "sdxl-dmd2-1step"):
        with pytest.raises(ValueError, match="--data"):
            check(from_preset(DistillConfig, name))
    for name in ("imagenet64-dmd2-gan", "cifar10-fdistill", "cifar10-sida", "imagenet64-fdistill"):
        assert option_values(from_preset(DistillConfig, name))["data"].startswith("datasets/")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-sida", "flow-dmd2-lora"])
def test_a_preset_has_a_plan(name, run):
    """Of memory too: augmentation and shifted times are computed on tensors without data."""
    values = option_values(run(name)) | {"preset": name, "peak_tflops": 1.0}
    estimate = plan(change(from_preset(PlanConfig, name), **values))
    assert estimate.hours > 0
    assert all(sum(memory.values()) > 0 for memory in estimate.memory.values())
