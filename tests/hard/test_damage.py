"""Every file that a command reads, damaged at random: reported in one line, or the result is as it was.

Formats of our own carry checksums: a damage that changes a result is reported, or the file was named as not verified.
Images, tables, presets and models of others have none, and are then other data. Never a traceback, never without bounds
of time and memory.
"""

import json
import random
import shutil
import signal
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.evaluate import partial_results
from dmdistill.commands.options import change
from dmdistill.commands.pairs.command import pairs
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.data.image_tensors import save_grid
from dmdistill.metrics.lpips import LPIPS
from dmdistill.metrics.lpips_weights import load_lpips, published_name
from dmdistill.networks.song_unet import SongUNet
from dmdistill.training.signals import TrainingStopped
from hard.formats import FORMATS
from helpers import tiny_pipelines
from helpers.configs import CPU, small_distillation
from helpers.damage import damage
from helpers.outcomes import Trial, faults, run_command
from helpers.runs import logged_values, skip_figures, student_bytes
from helpers.single_files import write_single_file
from helpers.tiny_models import save_student, unet2d_network

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ARGUMENTS = ("--device", "cpu", "--precision", "fp32", "--threads", "1")
SIZES = {"pair_count": 9, "batch": 3, "batch_reg": 2, "evaluate_images": 20, "report_images": 4, "solver_steps": 2}
OPTIONS = {"ema_halflives": (2.0,), "evaluate_every": 1, "save_every": 2, "lr": 0.02}
EDM = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 0,
    "model_channels": 8,
    "channel_mult": [1],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """No figures and timings; a cache of the test's own."""
    skip_figures(monkeypatch)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def files_of(folder, pattern="*"):
    return sorted(file for file in folder.rglob(pattern) if file.is_file() and file.name != ".lock")


def contents(folder):
    """The files of a folder that a command wrote."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in files_of(folder)}


def damage_files(master, trial, count, work, pattern="*"):
    """Damage a file of a fresh copy of a folder, `count` times; fail where something passed in silence or failed."""
    names = [file.relative_to(master) for file in files_of(master, pattern)]
    rng = random.Random(f"{trial.name} {count}")
    for number in range(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(master, work)
        file = work / names[number % len(names)]
        file.write_bytes(damage(file.read_bytes(), rng))
        trial(work, file, f"damage {number}")
    assert not faults(trial.name)


def counts(few, many):
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.hard)])


def hard(many):
    return pytest.mark.parametrize("count", [pytest.param(many, marks=pytest.mark.hard)])


@counts(10, 60)
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, count, tmp_path):
    write, read, detects = FORMATS[name]
    (master := tmp_path / "master").mkdir()
    write(master)
    shutil.copytree(master, tmp_path / "right")
    damage_files(master, Trial(name, read, tmp_path / "right", detects=detects), count, tmp_path / "work")


def interrupted_run(teacher, folder):
    """Run a distillation that SIGTERM stops at its fifth step, with checkpoints, pairs and a best state."""
    iterate, steps = Distillation.iterate, []

    def interrupting(*arguments):
        steps.append(0)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
        return iterate(*arguments)

    with mock.patch.object(Distillation, "iterate", interrupting), pytest.raises(TrainingStopped):
        distill(small_distillation(teacher=teacher, out=folder, **SIZES, **OPTIONS))


def resumed(folder):
    run = folder / "run"
    run_command("distill", "--resume", run)
    report = json.loads((run / "report.json").read_text())
    return student_bytes(run), logged_values(run), [report[who]["metrics"] for who in ("teacher", "student")]


@counts(4, 110)
def test_a_run_to_resume(count, judged, tmp_path):
    interrupted_run(judged, tmp_path / "master" / "run")
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("run, resumed", resumed, tmp_path / "work", unread=tuple(f"step-{i:06d}.png" for i in range(9)))
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(50)
def test_a_finished_run(count, judged, tmp_path):
    distill(small_distillation(teacher=judged, out=tmp_path / "master" / "run", **SIZES, **OPTIONS))
    for name in ("checkpoints", "pairs", "samples"):
        shutil.rmtree(tmp_path / "master" / "run" / name)
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("run, info", lambda f: run_command("info", f / "run"), tmp_path / "work", unread=("README.md",))
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


def drawn(folder, *arguments):
    """The images that a model draws, and what is said of it."""
    run_command("sample", folder / "model", "--count", 2, "--out", folder / "x.png", *arguments, *ARGUMENTS)
    return (folder / "x.png").read_bytes(), run_command("info", folder / "model")


@counts(6, 80)
def test_a_model(count, tiny_teacher, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "master" / "model")
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("model", drawn, tmp_path / "work", unread=("README.md",))
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(30)
def test_an_exported_model(count, tiny_teacher, tmp_path):
    pytest.importorskip("diffusers")
    save_student(str(tiny_teacher), tmp_path / "master" / "model")
    shutil.copytree(tmp_path / "master", tmp_path / "work")

    def exported(folder):
        run_command("export", folder / "model", folder / "out")
        return contents(folder / "out")

    trial = Trial("model, exported", exported, tmp_path / "work", unread=("README.md",))
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(40)
def test_given_pairs(count, tiny_teacher, tmp_path):
    config = change(
        PairsConfig(), teacher=str(tiny_teacher), out=tmp_path / "master" / "pairs", pair_count=9, shard_size=4
    )
    pairs(change(config, solver_steps=2, pair_batch=4, compute=CPU))
    small = ["--teacher", tiny_teacher, "--preset", "fashion", "--steps", 2, "--batch", 3, "--batch-reg", 2]
    small += [
        "--solver-steps",
        2,
        "--report-images",
        0,
        "--warmup",
        1,
        "--lr",
        0.01,
        "--match-from",
        0.5,
        "--save-every",
        2,
    ]

    def distilled(folder):
        run_command("distill", *small, "--pairs", folder / "pairs", "--out", folder / "run", *ARGUMENTS)
        return student_bytes(folder / "run")

    shutil.copytree(tmp_path / "master", tmp_path / "work")
    damage_files(tmp_path / "master", Trial("pairs", distilled, tmp_path / "work"), count, tmp_path / "work")


def evaluated(folder, *arguments):
    """The metrics of some images beside others'."""
    words = ("--reference", folder / "b", "--metrics", "frechet,kid,precision", "--batch", 5, *arguments)
    run_command("evaluate", folder / "a", *words, "--json", folder / "x.json", *ARGUMENTS)
    return json.loads((folder / "x.json").read_text())["metrics"]


def write_images(folder):
    rng = torch.Generator().manual_seed(0)
    for name in "ab":
        for number in range(20):
            save_grid(folder / name / f"{number}.png", torch.randn(1, 1, 12, 12, generator=rng), columns=1)


@counts(3, 50)
def test_a_classifier(count, feature_extractor, tmp_path):
    write_images(tmp_path)
    shutil.copytree(feature_extractor, tmp_path / "master" / "judge")

    def judged_images(folder):
        words = ("--metrics", "frechet", "--feature-extractor", folder / "judge")
        run_command("evaluate", tmp_path / "a", *words, "--json", folder / "x.json", *ARGUMENTS)
        return json.loads((folder / "x.json").read_text())["metrics"]

    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("classifier", judged_images, tmp_path / "work", unread=("README.md",))
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@counts(4, 70)
def test_caches(count, feature_extractor, tmp_path, monkeypatch):
    """Digests of files, features of a reference and partial results: what is damaged is made again."""
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(partial_results.PartialResults, "remove", lambda _: None)
    write_images(tmp_path)
    cache = tmp_path / "work" / "cache"
    monkeypatch.setenv("DMDISTILL_CACHE", str(cache))

    def measured(_):
        words = ("--reference", tmp_path / "b", "--metrics", "frechet,kid,precision", "--batch", 5)
        words += ("--feature-extractor", feature_extractor, "--json", tmp_path / "x.json", *ARGUMENTS)
        run_command("evaluate", tmp_path / "a", *words)
        return json.loads((tmp_path / "x.json").read_text())["metrics"]

    trial = Trial("caches", measured, tmp_path / "work")
    shutil.copytree(tmp_path / "work", tmp_path / "master")
    assert {file.relative_to(cache).parts[0] for file in files_of(cache)} == {"digests", "features", "extractions"}
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(60)
def test_a_pipeline_of_pixels(count, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDPMPipeline(unet=unet2d_network(), scheduler=diffusers.DDPMScheduler(num_train_timesteps=100))
    pipeline.save_pretrained(tmp_path / "master" / "model")
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("diffusers, pixels", drawn, tmp_path / "work", detects=False)
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(60)
def test_a_pipeline_with_text(count, tmp_path):
    pytest.importorskip("diffusers")
    tiny_pipelines.tiny("stable_diffusion", tmp_path / "master" / "model")
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("diffusers, text", lambda f: drawn(f, "--prompt", "red square"), tmp_path / "work", detects=False)
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@hard(60)
def test_a_single_file(count, tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "master").mkdir()
    write_single_file(tiny_pipelines.tiny("stable_diffusion", tmp_path / "pipeline"), tmp_path / "master/x.safetensors")
    shutil.copytree(tmp_path / "master", tmp_path / "work")
    words = ("--count", 2, "--prompt", "red square", *ARGUMENTS)

    def images(folder):
        run_command("sample", folder / "x.safetensors", "--out", tmp_path / "x.png", *words)
        return (tmp_path / "x.png").read_bytes()

    trial = Trial("single file", images, tmp_path / "work", detects=False)
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@counts(3, 50)
def test_an_edm_checkpoint(count, edm, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "master").mkdir()
    edm.write(tmp_path / "master" / "x.pkl", SongUNet(**EDM), EDM)

    def converted(folder):
        run_command("convert", folder / "x.pkl", folder / "out")
        return contents(folder / "out")

    shutil.copytree(tmp_path / "master", tmp_path / "work")
    trial = Trial("EDM checkpoint, converted", converted, tmp_path / "work", detects=False)
    damage_files(tmp_path / "master", trial, count, tmp_path / "work")


@pytest.mark.hard
def test_lpips(tmp_path):
    """Weights from elsewhere have no checksum, and are named."""
    torch.manual_seed(0)
    (tmp_path / "master").mkdir()
    model = LPIPS()
    weights = {published_name(name): torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "master" / "lpips.safetensors")

    def loaded(folder):
        return [float(one.double().sum()) for one in load_lpips(folder / "lpips.safetensors").state_dict().values()]

    shutil.copytree(tmp_path / "master", tmp_path / "work")
    damage_files(tmp_path / "master", Trial("LPIPS weights", loaded, tmp_path / "work"), 15, tmp_path / "work")
