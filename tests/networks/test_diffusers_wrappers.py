"""What our adapters pass to a network of diffusers is what its own pipeline passes, and so is the answer."""

import shutil
from inspect import signature

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from dmdistill.commands.export.sampling import student_sampling
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.models.diffusers_pipeline import load_diffusers
from helpers.tiny_models import save_student, unet2d

KINDS = {
    "stable_diffusion": {},
    "sdxl": {},
    "sd3": {},
    "flux": {},
    "flux-guided": {"guidance": True},
}
PROMPTS = ["a red square", "blue circle"]
MACHINE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)


class Call:
    """The last call of a network: what it was passed, by name, and its answer."""

    def __init__(self, network):
        self.names = list(signature(network.forward).parameters)
        network.register_forward_hook(self.keep, with_kwargs=True)

    def keep(self, _, arguments, options, answer):
        passed = dict(zip(self.names, arguments, strict=False)) | options
        self.passed = {name: value for name, value in flat(passed).items() if isinstance(value, torch.Tensor)}
        self.answer = answer[0]


def flat(passed):
    inner = passed.pop("added_cond_kwargs", None) or {}
    return passed | inner


def asked(kind, folder, tmp_path):
    """Our call and the pipeline's, in a run of one step from the same noise, of the same prompts."""
    teacher = load_diffusers(str(folder))
    teacher = with_prompt_texts(teacher, PROMPTS)
    ours = Call(teacher.network.model)
    z = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = teacher.denoiser.schedule
        teacher.denoiser(z, torch.full((2,), float(path.t_max)), teacher.condition(torch.tensor([0, 1])))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    student = save_student(str(folder), tmp_path / "student")
    pipeline.scheduler = student_sampling(student).scheduler
    pipeline.set_progress_bar_config(disable=True)
    theirs = Call(getattr(pipeline, "unet", None) or pipeline.transformer)
    latents = pipeline._pack_latents(z, *z.shape) if kind.startswith("flux") else z
    guidance = getattr(teacher.network, "embedded_guidance", 0)
    options = {"guidance_scale": guidance, "num_inference_steps": 1, "output_type": "latent"}
    pipeline(PROMPTS, latents=latents, height=16, width=16, **options)
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_asked_as_its_pipeline_asks_it(kind, tiny_pipeline, tmp_path):
    ours, theirs = asked(kind, tiny_pipeline(kind.partition("-")[0], **KINDS[kind]), tmp_path)
    assert ours.passed.keys() == theirs.passed.keys()
    for name, value in theirs.passed.items():
        mine = ours.passed[name].float()
        assert torch.equal(mine, value.float().expand_as(mine)), name
        assert mine.shape == value.shape or name in ("timestep", "guidance"), name
    torch.testing.assert_close(ours.answer, theirs.answer, rtol=1e-5, atol=1e-6)
    assert ("guidance" in ours.passed) == (kind == "flux-guided")
    if kind == "sdxl":
        assert ours.passed["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_the_time_matters(tiny_pipeline, tmp_path):
    """That the times passed are alike would say nothing of a network that does not look."""
    for kind in ("sd3", "flux"):
        teacher = with_prompt_texts(load_diffusers(str(tiny_pipeline(kind))), PROMPTS)
        call, z = Call(teacher.network.model), torch.randn(2, *teacher.shape)
        answers = []
        with torch.no_grad():
            for t in (0.25, 1.0):
                teacher.denoiser(z, torch.full((2,), t), teacher.condition(torch.tensor([0, 1])))
                answers.append(call.answer)
                assert call.passed["timestep"].tolist() == [t * (1000 if kind == "sd3" else 1)] * 2
        assert (answers[0] - answers[1]).abs().max() > 1e-3


@pytest.fixture
def refused(error_line, monkeypatch, tmp_path):
    """Runs a command that must fail: one line, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        line = error_line(*arguments)
        assert not (tmp_path / "out").exists()
        return line

    return run


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red square\n")
    return ["--prompts", str(tmp_path / "prompts.txt")]


@pytest.mark.parametrize("command", ["pairs", "distill"])
def test_guidance_wants_a_condition(command, tmp_path, refused):
    folder = unet2d(tmp_path / "unet", diffusers.DDPMScheduler())
    line = refused(command, "--teacher", folder, "--out", "out", "--guidance", "2", *MACHINE)
    assert "--guidance 2.0 with an unconditional teacher" in line


def test_guidance_wants_a_null_class(tmp_path, refused):
    folder = unet2d(tmp_path / "unet", diffusers.DDPMScheduler(), num_class_embeds=5)
    for command in ("pairs", "distill"):
        line = refused(command, "--teacher", folder, "--out", "out", "--guidance", "2", *MACHINE)
        assert "--guidance 2.0" in line
        assert "null class" in line


def test_what_is_told_must_fit(tiny_pipeline, tmp_path, prompts, refused):
    text, unet = tiny_pipeline("stable_diffusion"), unet2d(tmp_path / "unet", diffusers.DDPMScheduler())
    assert "give --prompts FILE" in refused("pairs", "--teacher", text, "--out", "out", *MACHINE)
    assert "is a text-to-image model, give --prompt TEXT" in refused("sample", text, "--labels", "1", *MACHINE)
    assert "is unconditional: it takes no prompts" in refused("sample", unet, *prompts, *MACHINE)
    assert "is unconditional" in refused("sample", unet, "--labels", "1", *MACHINE)
    (tmp_path / "empty.txt").write_text("\n \n")
    line = refused("pairs", "--teacher", text, "--prompts", tmp_path / "empty.txt", "--out", "out", *MACHINE)
    assert "empty.txt holds no prompts" in line


@pytest.mark.parametrize(
    ("family", "part", "said"),
    [
        ("stable_diffusion", "unet", "holds no unet/config.json, which its model_index.json names"),
        ("flux", "transformer", "holds no transformer/config.json, which its model_index.json names"),
        ("stable_diffusion", "vae", "holds no vae/config.json, which its model_index.json names"),
        ("stable_diffusion", "scheduler", "holds no scheduler/scheduler_config.json"),
        ("stable_diffusion", "tokenizer", "holds no tokenizer/, which its model_index.json names"),
        ("sd3", "text_encoder_3", "holds no text_encoder_3/, which its model_index.json names"),
        ("stable_diffusion", "model_index.json", "holds no config.json, student/ or teacher/"),
    ],
)
@pytest.mark.parametrize("command", ["pairs", "info"])
def test_a_part_that_is_missing_is_named(command, family, part, said, tiny_pipeline, tmp_path, prompts, refused):
    folder = shutil.copytree(tiny_pipeline(family), tmp_path / "pipeline")
    (folder / part).unlink() if part.endswith(".json") else shutil.rmtree(folder / part)
    told = ["--teacher", folder, "--out", "out", *prompts, *MACHINE] if command == "pairs" else [folder]
    assert said in refused(command, *told)
