"""Every kind of teacher through all commands, as a user runs them: pairs, distill, info, sample, evaluate, export."""

import sys

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from dmdistill.commands.cli import main
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.data.pairs import open_pairs
from dmdistill.models.load import load_model
from dmdistill.models.model import Student
from dmdistill.networks.song_unet import SongUNet
from helpers.tiny_models import dit, unet2d

COMPUTE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
SMALL = ["--steps", "2", "--batch", "2", "--batch-reg", "2", "--report-images", "2", "--evaluate-images", "2"]
TEXT = ("stable_diffusion", "sdxl", "sd3", "flux")
NULL = ("edm", "dit")  # those with a null class
OWN = """
import torch
from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import Flow
from dmdistill.models.model import Teacher

class Net(torch.nn.Conv2d):
    def forward(self, x, time, cond=None):
        return super().forward(x)

def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(name="own", denoiser=FlowDenoiser(Net(3, 3, 3, padding=1), Flow()), shape=(3, 8, 8), licence="MIT")
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)
    monkeypatch.setattr("dmdistill.commands.distill.report.draw_curves", lambda _: None)
    monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.fixture
def teacher(request, tmp_path, tiny_teacher, tiny_pipeline, edm):
    """kind -> what --teacher is given."""

    def make(kind):
        if kind == "edm":
            return tiny_teacher
        if kind == "pkl":
            settings = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 0, "model_channels": 16}
            settings |= {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
            return edm.write(tmp_path / "tiny.pkl", SongUNet(**settings), settings)
        if kind == "unet":
            return unet2d(tmp_path / "unet", diffusers.DDPMScheduler())
        if kind == "unet-flow":
            return unet2d(tmp_path / "unet", diffusers.FlowMatchEulerDiscreteScheduler())
        if kind == "dit":
            return dit(tmp_path / "dit")
        if kind == "own":
            (tmp_path / "ownteacher.py").write_text(OWN)
            return "ownteacher:teacher"
        return tiny_pipeline(kind)

    return make


def run(*arguments):
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["edm", "pkl", "unet", "unet-flow", "dit", *TEXT, "own"])
def test_every_command_runs_for_every_kind_of_teacher(kind, teacher, tmp_path, capsys):
    name = teacher(kind)
    prompts = []
    if kind in TEXT:
        (tmp_path / "prompts.txt").write_text("a red square\nblue circle\nred\n")
        prompts = ["--prompts", "prompts.txt"]
    guided = ["--guidance", "1.5"] if kind in TEXT + NULL else []
    ode = ["--solver-steps", "2", *guided]
    run("info", name)
    run(
        "pairs", "--teacher", name, "--out", "pairs", "--pair-count", "3", "--pair-batch", "2", *ode, *prompts, *COMPUTE
    )
    assert len(open_pairs(tmp_path / "pairs")) == 3
    pairs = ["--pair-count", "3"] if kind == "sd3" else ["--pairs", "pairs"]  # or the run makes its own
    lora = ["--lora-student", "2"] if kind in ("sdxl", "flux") else []
    run("distill", "--teacher", name, "--out", "run", *pairs, *SMALL, *ode, *prompts, *lora, *COMPUTE)
    student = load_model("run")
    assert isinstance(student, Student)
    for model in (name, "run"):
        run("sample", model, "--count", "2", "--out", f"{model == 'run'}.png", *prompts, *COMPUTE)
        run("evaluate", model, "--images", "3", "--batch", "2", *prompts, *COMPUTE)
        capsys.readouterr()
        run("info", model)
        assert "parameters" in capsys.readouterr().out
    if kind == "own":
        with pytest.raises(SystemExit) as caught:
            run("export", "run", "out")
        assert caught.value.code == 2
        assert "own-student-run cannot be exported: its network, a Net" in capsys.readouterr().err
        return
    run("export", "run", "out")
    if not lora:
        pipeline = diffusers.DiffusionPipeline.from_pretrained("out", trust_remote_code=True)
        network = getattr(pipeline, "unet", None) or pipeline.transformer
        own = dict(student.network.named_parameters())
        for key, value in network.named_parameters():
            none = torch.zeros_like(value) if "cond_proj" in key else None  # the embedding of guidance
            match = own.get(f"model.{key}", own.get(key.removeprefix("net."), none))
            assert torch.equal(value, match)
