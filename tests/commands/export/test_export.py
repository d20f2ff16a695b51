"""Exported folders: diffusers, where this package cannot be imported, makes of the same noise the same image."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from dmdistill.commands.cli import main
from dmdistill.commands.export.pixel import ddim_is_exact, sampling_steps
from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.core import denoisers
from dmdistill.core.generators import Generator, derived_noise
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet
from helpers.edits import edit_json
from helpers.killed_command import run_killed
from helpers.tiny_models import dit, save_student, unet2d

PROMPTS = ["a red square", "blue circle"]
TEXT = ("stable_diffusion", "sdxl", "sd3", "flux", "flux-guided")
LORA = ("stable_diffusion", "sdxl", "sd3", "flux")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DRAW = Path(__file__).with_name("draw_exported.py")


PIXELS = ("edm", "adm", "ncsn", "unet", "unet-ddpm", "unet-v", "unet-classes", "unet-flow", "unet-variance", "unet-edm")
QUARTERS = (999.0, 749.0, 499.0, 249.0)
UNEVEN = (999.0, 700.0, 320.0)
SHIFTED = tuple(Flow(shift=3.0).student_times(4))


def steps(transition, *timesteps):
    return {"timesteps": list(timesteps), "transition": transition}


FEW_STEPS = {  # key: teacher, rank of LoRA, the student's steps
    "edm-sde": ("edm", 0, steps("sde", 80.0, 9.0, 1.5, 0.3)),
    "unet-classes-ode": ("unet-classes", 0, steps("ode", *UNEVEN)),
    "unet-ode": ("unet", 2, steps("ode", *QUARTERS)),
    "sd-sde": ("stable_diffusion", 0, steps("sde", *QUARTERS)),
    "sd-ode-uneven": ("stable_diffusion", 2, steps("ode", *UNEVEN)),
    "sdxl-399": ("sdxl", 0, steps("sde", 399.0)),
    "sd3-sde": ("sd3", 2, steps("sde", *SHIFTED)),
    "flux-ode": ("flux", 0, steps("ode", *SHIFTED)),
    "dit-sde": ("dit", 0, steps("sde", *QUARTERS)),
}
SLOW = {  # the same
    "edm-ode": ("edm", 2, steps("ode", 80.0, 9.0, 1.5)),
    "edm-2.5": ("edm", 0, steps("sde", 2.5)),
    "unet-sde": ("unet", 0, steps("sde", *QUARTERS)),
    "unet-flow-sde": ("unet-flow", 0, steps("sde", *SHIFTED)),
    "unet-edm-ode": ("unet-edm", 0, steps("ode", 50.0, 3.0)),
    "unet-v-ode": ("unet-v", 0, steps("ode", *UNEVEN)),
    "sd-sde-lora": ("stable_diffusion", 2, steps("sde", *QUARTERS)),
    "sd-sde-uneven": ("stable_diffusion", 0, steps("sde", *UNEVEN, 8.0)),
    "sd-ode": ("stable_diffusion", 0, steps("ode", *QUARTERS)),
    "sdxl-399-lora": ("sdxl", 2, steps("sde", 399.0)),
    "sdxl-sde": ("sdxl", 0, steps("sde", *QUARTERS)),
    "sdxl-ode-uneven": ("sdxl", 0, steps("ode", *UNEVEN)),
    "sd3-ode": ("sd3", 0, steps("ode", *SHIFTED)),
    "sd3-uneven": ("sd3", 0, steps("ode", 0.95, 0.6, 0.13)),
    "flux-sde-lora": ("flux", 2, steps("sde", *SHIFTED)),
    "flux-guided-uneven": ("flux-guided", 0, steps("sde", 1.0, 0.6, 0.13)),
    "dit-ode": ("dit", 0, steps("ode", *QUARTERS)),
}
CASES = {
    **{name: (name, 0, {}) for name in (*PIXELS, "dit", *TEXT)},
    **{f"{name}-lora": (name, 2, {}) for name in (*LORA, "edm", "dit", "unet")},
    **FEW_STEPS,
}
KEYS = [*CASES, *(pytest.param(key, marks=pytest.mark.slow) for key in SLOW)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, tiny_teacher, tiny_pipeline, edm):
    """Folders of teachers of every kind, by name."""
    folders, folder = {"edm": tiny_teacher}, tmp_path_factory.mktemp("teachers")
    settings = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 4, "model_channels": 8}
    settings |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    folders["adm"] = edm.write(folder / "adm.pkl", DhariwalUNet(**settings), settings)
    ncsn = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
    folders["ncsn"] = edm.write(folder / "ncsn.pkl", SongUNet(**settings, **ncsn), settings | ncsn)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    folders["unet"] = unet2d(folder / "unet", diffusers.DDPMScheduler(beta_end=0.004))
    folders["unet-ddpm"] = unet2d(folder / "unet-ddpm", diffusers.DDPMScheduler())
    folders["unet-v"] = unet2d(folder / "unet-v", diffusers.EulerDiscreteScheduler(**zero))
    folders["unet-classes"] = unet2d(folder / "unet-classes", diffusers.DDIMScheduler(), num_class_embeds=5)
    folders["unet-flow"] = unet2d(folder / "unet-flow", flow)
    variance = diffusers.DDPMScheduler(beta_end=0.004, variance_type="learned_range")
    folders["unet-variance"] = unet2d(folder / "unet-variance", variance, out_channels=6)
    folders["unet-edm"] = unet2d(folder / "unet-edm", diffusers.EDMEulerScheduler(sigma_max=50.0))
    folders["dit"] = dit(folder / "dit")
    for kind in TEXT:
        family, _, guided = kind.partition("-")
        folders[kind] = tiny_pipeline(family, **({"guidance": True} if guided else {}))
    return folders


@pytest.fixture(scope="module")
def drawn(teachers, tmp_path_factory):
    """name -> (our images, theirs, the folder), of all kinds."""
    return draw(CASES, teachers, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def drawn_slowly(teachers, tmp_path_factory):
    """The same of further students."""
    return draw(SLOW, teachers, tmp_path_factory.mktemp("exported-slowly"))


@pytest.fixture
def drawing(key, request):
    """Our images of one student, theirs, and the folder."""
    return request.getfixturevalue("drawn" if key in CASES else "drawn_slowly")[key]


def draw(cases, teachers, folder):
    """Export students, and draw the same images by this package and by one process without it."""
    jobs, ours = [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMDISTILL_CACHE", str(folder / "cache"))
        patch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)
        for key, (name, rank, steps) in cases.items():
            save_student(str(teachers[name]), folder / "students" / key, rank=rank, **steps)
            ours[key], job = exported(key, folder, teachers[name] if rank and name in LORA else None)
            jobs.append(job)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-I", str(DRAW), str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {key: (ours[key], torch.load(f"{folder / key}.out.pt"), folder / key) for key in ours}


def exported(key, folder, base):
    """Our images of a student, in about [0, 1], and what the other process is to draw: both from the same noise."""
    main(["export", str(folder / "students" / key), str(folder / key)])
    student = load_model(str(folder / "students" / key))
    z = torch.randn(2, *student.shape, generator=torch.Generator().manual_seed(3))
    if student.text is not None:
        student = with_prompt_texts(student, PROMPTS)
    index = torch.tensor([1, 0]) if student.conditions is not None else None
    images = student.images(z, student.condition(index)) / 2 + 0.5
    with torch.no_grad():
        first = Generator(load_teacher(student.config["distilled"]["teacher"]).denoiser)(z, student.condition(index))
    assert (student.generate(z, student.condition(index)) - first).std() > 0.01 * first.std()  # it is not the teacher
    noise = [derived_noise(z, step) for step in range(student.evaluations)] if student.transition == "sde" else []
    torch.save([z, *noise], f"{folder / key}.z.pt")
    job = {"folder": str(folder / key), "base": base and str(base), "prompts": PROMPTS[::-1]}
    unguided = job["base"] is None and "sd3" not in key  # whatever the pipeline's own guidance_scale is
    job["guidance"] = None if unguided else getattr(student.network, "embedded_guidance", 0)
    return images, job


@pytest.mark.parametrize("key", KEYS)
def test_the_same_noise_makes_the_same_image(key, drawing):
    ours, theirs, folder = drawing
    assert theirs.shape == ours.shape
    if not (folder / "pipeline.py").exists():  # diffusers' pipelines clip
        assert ((ours > 0) & (ours < 1)).float().mean() > 0.1
        ours = ours.clamp(0, 1)
    difference = (theirs - ours).abs().max() / ours.std()
    print(f"{key}: {difference:.2g}")
    assert difference < 1e-5


@pytest.mark.parametrize("key", KEYS)
def test_an_exported_student_is_a_student_again(key, drawing, monkeypatch):
    """With the same images; LoRA weights alone say where they belong. No command takes it for a teacher."""
    monkeypatch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)
    expected, _, folder = drawing
    if (folder / "pytorch_lora_weights.safetensors").exists():
        with pytest.raises(ValueError, match=r"LoRA weights.* give the folder of the student"):
            load_model(str(folder))
        return
    with pytest.raises(ValueError, match="is a student, expected a teacher"):
        load_teacher(str(folder))
    student = load_model(str(folder))
    assert isinstance(student, Student)
    original = load_model(str(folder.parent / "students" / key))
    assert (student.name, student.timesteps) == (original.name, original.timesteps)
    assert student.transition == original.transition
    if student.text is not None:
        student = with_prompt_texts(student, PROMPTS)
    index = torch.tensor([1, 0]) if student.conditions is not None else None
    images = student.images(torch.load(f"{folder}.z.pt")[0], student.condition(index)) / 2 + 0.5
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "scheduler", "arguments", "times"),
    [
        ("stable_diffusion", "DDIMScheduler", "num_inference_steps=1", [999]),
        ("sd-sde", "LCMScheduler", "num_inference_steps=4", [999, 749, 499, 249]),
        ("sd-ode-uneven", "DPMSolverMultistepScheduler", "timesteps=[999, 700, 320]", None),
        ("sdxl-399", "LCMScheduler", "timesteps=[399]", [399]),
        ("sd3-sde", "FlowMatchEulerDiscreteScheduler", "sigmas=[1, 0.9, 0.75, 0.5]", None),
        ("flux-ode", "FlowMatchEulerDiscreteScheduler", "num_inference_steps=4", [1000, 900, 750, 500]),
        ("dit-sde", "LCMScheduler", "num_inference_steps=4", [999, 749, 499, 249]),
    ],
)
def test_scheduler_card_and_index_hold_the_times(key, scheduler, arguments, times, drawn):
    """LoRA weights have no index."""
    folder, (_, rank, steps) = drawn[key][2], CASES[key]
    assert json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"] == scheduler
    card = " ".join((folder / "README.md").read_text().split())
    assert f", {arguments}).images" in card
    assert ("The scheduler does not hold these times" in card) == (not arguments.startswith("num_inference_steps"))
    assert "one-step image generator" in card if times and len(times) == 1 else "generator of" in card
    assert (folder / "model_index.json").exists() == (not rank)
    if not rank:
        block = json.loads((folder / "model_index.json").read_text())["dmd2_config"]
        solver = steps.get("transition", "sde")
        expected = {"num_inference_steps": len(times), "denoising_timesteps": times, "solver": solver}
        assert block == {**expected, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("stable_diffusion", "guidance_scale can be left out"),
        ("sdxl", "guidance_scale can be left out"),
        ("stable_diffusion-lora", "guidance_scale is needed"),
        ("sd3", "guidance_scale is needed"),
        ("dit", "guidance_scale is needed"),
        ("flux", None),
    ],
)
def test_the_card_says_whether_guidance_scale_is_needed(key, words, drawn):
    card = (drawn[key][2] / "README.md").read_text()
    assert "guidance_scale=" in card
    assert words in card if words else "# guidance_scale" not in card


@pytest.mark.parametrize(
    ("teacher", "sampling", "words"),
    [
        ("stable_diffusion", ("sde", 999.0, 499.5), ("the time 499.5", "whole ones from 1")),
        ("stable_diffusion", ("sde", 999.0, 0.0), ("the time 0", "whole ones from 1")),
        ("dit", ("ode", *UNEVEN), ("the times 999 700 320", "DiTPipeline takes times at equal parts")),
        ("zero-snr", ("ode", *UNEVEN), ("only DDIM", "equal parts", "a number of steps that divides 1000")),
    ],
)
def test_steps_that_no_scheduler_takes_are_refused(
    teacher, sampling, words, teachers, tiny_pipeline, tmp_path, error_line
):
    source = teachers.get(teacher) or shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / teacher)
    if teacher == "zero-snr":
        zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        diffusers.DDIMScheduler(**zero).save_pretrained(source / "scheduler")
    save_student(str(source), tmp_path / "student", **steps(*sampling))
    line = error_line("export", tmp_path / "student", tmp_path / "out")
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_damaged_times_of_an_exported_student_are_one_clear_line(drawn, tmp_path, error_line):
    folder = shutil.copytree(drawn["sd-sde"][2], tmp_path / "copy")
    edit_json(folder / "dmdistill.json", timesteps=[249, 999])
    assert "dmdistill.json: timesteps is [249, 999], expected a list of falling numbers" in error_line("info", folder)


@pytest.mark.parametrize(("betas", "exact"), [((1e-4, 0.004), True), ((8.5e-4, 0.012), False), ((1e-4, 0.02), False)])
def test_ddims_pipeline_is_taken_where_its_rounding_allows(betas, exact, drawn):
    """A trained student's image is what is left where noise and its prediction cancel: alpha of them."""
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    kind = "scaled_linear" if betas[1] == 0.012 else "linear"
    scheduler = diffusers.DDIMScheduler(beta_start=betas[0], beta_end=betas[1], beta_schedule=kind, **options)
    schedule = VP(scheduler.alphas_cumprod)
    assert ddim_is_exact(scheduler, denoisers.EpsDenoiser(Line(), schedule)) == exact
    z, x = torch.randn(4, 3, 8, 6), 0.5 * torch.randn(4, 3, 8, 6)
    last = torch.tensor([999.0])
    f = (z - schedule.alpha(last) * x) / schedule.sigma(last)
    denoiser = denoisers.EpsDenoiser(Given(f), schedule)
    ours, n = Generator(denoiser)(z), sampling_steps(Generator(denoiser), (3, 8, 6))[0]
    assert (ours - x).abs().max() < 1e-4
    assert (n["gain"] * (n["skip"] * z + n["out"] * f) - ours).abs().max() < 1e-6 * ours.std() * 10
    theirs = scheduler.step(f, torch.tensor(999), z, return_dict=False)[0]
    if exact:  # else it depends on how the processor rounds a root
        assert (theirs - ours).abs().max() < 1e-5 * ours.std()
    assert (drawn["unet"][2] / "pipeline.py").exists() is False
    assert (drawn["unet-ddpm"][2] / "pipeline.py").exists()


class Given(nn.Module):
    """A network with a fixed output."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x, time, cond=None):
        return self.f


class Line(nn.Module):
    """F(x, time) with both in it."""

    def forward(self, x, time, cond=None):
        return 0.3 * x + 0.01 * time[:, None, None, None] + 0.2


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        (denoisers.X0Denoiser, VP.linear_betas()),
        (denoisers.EpsDenoiser, VP.linear_betas()),
        (denoisers.VDenoiser, VP.linear_betas()),
        (denoisers.FlowDenoiser, Flow(shift=3.0)),
        (denoisers.EDMDenoiser, EDM(sigma_max=50.0)),
    ],
)
def test_five_numbers_are_the_generator(kind, schedule):
    denoiser = kind(Line(), schedule)
    denoiser.precision = torch.bfloat16
    (n,) = sampling_steps(Generator(denoiser), (3, 4, 6))
    assert (abs(n["skip"]) <= 1, denoiser.precision) == (True, torch.bfloat16)
    denoiser.precision = None
    z = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    f = Line()(n["scale"] * z, torch.full((2,), n["time"], dtype=torch.float64))
    expected = Generator(denoiser)(z)
    torch.testing.assert_close(n["gain"] * (n["skip"] * z + n["out"] * f), expected, rtol=1e-9, atol=1e-9)


def test_a_denoiser_of_another_form_is_refused():
    class Odd(denoisers.X0Denoiser):
        def mean(self, f, x_t, alpha, sigma):
            return f**2

    with pytest.raises(ValueError, match="Odd is not linear in its network's output and cannot be exported"):
        sampling_steps(Generator(Odd(Line(), Flow())), (3, 4, 6))


def read_card(folder):
    """Return the head of a model card, and its body."""
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.parametrize("key", ["edm", "adm", "unet-classes", "unet-flow"])
def test_half_precision_is_enough(key, drawn, monkeypatch):
    """Only the input and output of the network are rounded then."""
    monkeypatch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", str(drawn[key][2].parent / "modules"))
    load, z = diffusers.DiffusionPipeline.from_pretrained, torch.load(f"{drawn[key][2]}.z.pt")[0]
    half = load(drawn[key][2], trust_remote_code=True, dtype=torch.bfloat16)
    images = half(noise=z, class_labels=[1, 0] if half.config.classes else None, output_type="pt").images / 2 + 0.5
    assert images.dtype == torch.float32
    assert (images - drawn[key][0]).std() < 0.05 * images.std()
    assert half(batch_size=3, generator=torch.Generator().manual_seed(0)).images[2].size == (8, 8)


@pytest.fixture
def hub_modules(tmp_path, monkeypatch):
    """Where diffusers copies a pipeline's source to."""
    monkeypatch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def student(tiny_teacher, tmp_path):
    """The folder of a run with a student of the tiny teacher."""
    save_student(str(tiny_teacher), tmp_path / "run" / "student")
    return tmp_path / "run"


def test_the_card_describes_the_student(student, tmp_path):
    row = {"images": 9, "seconds_per_image": 0.5, "metrics": {"frechet_judge": 1.25}}
    rows = {"teacher": {**row, "model": "tiny", "evaluations_per_image": 35}}
    rows["student"] = {**row, "model": "tiny-student", "evaluations_per_image": 1, "metrics": {"frechet_judge": 2.5}}
    (student / "report.json").write_text(json.dumps(rows))
    for source in (student, student / "student"):
        out = tmp_path / f"of-{source.name}"
        main(["export", str(source), str(out)])
        head, body = read_card(out)
        assert (head["license"], head["library_name"]) == ("mit", "diffusers")
        assert "base_model" not in head
        assert "distilled from the teacher 'tiny' by distribution matching distillation (DMD; Yin et al.," in body
        assert "Licence of the weights, as of the teacher's: MIT." in body
        assert "steps = 7" in body
        assert "| tiny-student | 1 | 2.5 | 500 |" in body
        assert '"this folder, or its name on the hub", trust_remote_code=True' in body
        assert str(student.parent) not in (out / "README.md").read_text()


def test_what_is_written_is_all_there_is(student, tmp_path):
    """And all of it can be read by whoever may read new files."""
    os.umask(umask := os.umask(0))
    main(["export", str(student), str(tmp_path / "out")])
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    network = {f"unet/{name}" for name in ("network.py", "config.json", "diffusion_pytorch_model.safetensors")}
    assert files == {"README.md", "dmdistill.json", "model_index.json", "pipeline.py"} | network
    assert {(tmp_path / "out" / file).stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_teacher_of_the_hub_is_named(tiny_pipeline, tmp_path, monkeypatch):
    """Its parts come from where the hub's files lie, its licence from its card."""
    source = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "cache")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: strange-licence\n---\nlicense: mit\n")
    (source / "unet" / "odd.py").write_text("raise SystemExit")
    (source / "vae" / "odd.py").write_text("raise SystemExit")
    monkeypatch.setattr("dmdistill.models.diffusers_folder.download", lambda _: source)
    for rank in (0, 2):
        save_student("owner/thing", tmp_path / "student", rank=rank)
        out = tmp_path / f"out-{rank}"
        main(["export", str(tmp_path / "student"), str(out)])
        head, body = read_card(out)
        assert (head["license"], head["license_name"], head["base_model"]) == (
            "other",
            "strange-licence",
            "owner/thing",
        )
        assert head["pipeline_tag"] == "text-to-image"
        assert ('"owner/thing", dtype=torch.float32' in body) == bool(rank)
        assert ("pipeline.load_lora_weights" in body) == bool(rank)
        assert list(out.rglob("*.py")) == []
        for file in (source / "text_encoder").iterdir():
            assert rank or (out / "text_encoder" / file.name).read_bytes() == file.read_bytes()


def test_a_killed_export_does_not_block_the_next(student, tmp_path):
    """Killed before the card, the network is already there; the next call leaves nothing else."""
    run_killed("dmdistill.commands.export.command.export_card", "export", student, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    main(["export", str(student), str(tmp_path / "out")])
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def stored_dtypes(folder):
    """The dtypes of all tensors in the safetensors files of a folder, as safetensors calls them."""
    return {name for file in folder.glob("*.safetensors") for name in dtypes_in(file)}


def dtypes_in(file):
    with safe_open(file, framework="pt") as tensors:
        return {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118


def snippet(folder):
    """The code of a card, with the folder's own name in it, run; returns its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of arguments that were renamed, such as torch_dtype
        exec(code.replace("this folder, or its name on the hub", str(folder)), names)
    return names


@pytest.mark.parametrize(("save_dtype", "stored"), [("auto", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_the_network_is_stored_in_the_precision_that_is_wanted(save_dtype, stored, student, tmp_path, hub_modules):
    """The card's code loads it in that precision and generates four images."""
    out = tmp_path / "out"
    main(["export", str(student), str(out), "--save-dtype", save_dtype])
    assert stored_dtypes(out / "unet") == {stored}
    names = snippet(out)
    assert {parameter.dtype for parameter in names["pipeline"].unet.parameters()} == {DTYPES[stored]}
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_stays_half(lora, tiny_pipeline, tmp_path):
    """A student is exported in fp16 where it is stored so itself, or where its teacher's network is."""
    half = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "half")
    network = diffusers.UNet2DConditionModel.from_pretrained(half / "unet")
    nn.Module.to(network, torch.float16)
    network.save_pretrained(half / "unet")
    save_student(str(half), tmp_path / "of-half", rank=2 * lora)
    save_student(str(tiny_pipeline("stable_diffusion")), tmp_path / "stored-half", rank=2 * lora)
    weights = tmp_path / "stored-half" / "model.safetensors"
    write_safetensors(weights, {key: tensor.half() for key, tensor in read_safetensors(weights).items()})
    for name in ("of-half", "stored-half"):
        out = tmp_path / "out" / name
        main(["export", str(tmp_path / name), str(out)])
        assert stored_dtypes(out if lora else out / "unet") == {"F16"}
        assert " dtype=torch.float16" in (out / "README.md").read_text()
        main(["export", str(tmp_path / name), str(tmp_path / "out" / "full" / name), "--save-dtype", "fp32"])
        assert stored_dtypes(tmp_path / "out" / "full" / name / ("" if lora else "unet")) == {"F32"}


def save_half(folder, **options):
    """Save a folder's U-Net again, in fp16, as a variant."""
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    nn.Module.to(network, torch.float16)
    network.save_pretrained(folder / "unet", variant="fp16", **options)


def test_a_variant_beside_the_usual_weights_is_left(tiny_pipeline, tmp_path):
    """The student comes from the usual weights, so it is stored as they are."""
    both = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "both")
    save_half(both)
    (both / "text_encoder" / "model.fp16.safetensors").write_bytes(b"none of these")
    save_student(str(both), tmp_path / "student")
    main(["export", str(tmp_path / "student"), str(tmp_path / "out")])
    assert stored_dtypes(tmp_path / "out" / "unet") == {"F32"}
    assert [file.name for file in (tmp_path / "out").rglob("*.fp16.*")] == []


def test_a_pipeline_with_a_variant_only_is_exported_under_the_usual_names(tiny_pipeline, tmp_path):
    """Of the U-Net it says the precision; the text encoder's weights, in two files with an index, are copied."""
    half = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "half")
    save_half(half)
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    encoder = transformers.CLIPTextModel.from_pretrained(half / "text_encoder", dtype=torch.float16)
    shutil.rmtree(half / "text_encoder")
    encoder.save_pretrained(half / "text_encoder", variant="fp16", max_shard_size="5KB")
    assert len(list((half / "text_encoder").glob("*.safetensors"))) > 1
    (half / "vae" / "diffusion_pytorch_model.safetensors").rename(half / "vae/diffusion_pytorch_model.fp16.safetensors")
    save_student(str(half), tmp_path / "student")
    main(["export", str(tmp_path / "student"), str(tmp_path / "out")])
    assert stored_dtypes(tmp_path / "out" / "unet") == stored_dtypes(tmp_path / "out" / "text_encoder") == {"F16"}
    assert snippet(tmp_path / "out")["image"].size == (16, 16)


def test_the_card_of_a_pipeline_of_mixed_precision_runs(tiny_pipeline, tmp_path):
    """A text encoder stored in fp16 beside a network in fp32: the dtype in the code is that of all."""
    mixed = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "mixed")
    for file in (mixed / "text_encoder").glob("*.safetensors"):
        save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    save_student(str(mixed), tmp_path / "student")
    main(["export", str(tmp_path / "student"), str(tmp_path / "out")])
    assert stored_dtypes(tmp_path / "out" / "text_encoder") == {"F16"}
    assert snippet(tmp_path / "out")["image"].size == (16, 16)


def test_the_card_of_lora_weights_imports_first_and_names_where_the_teacher_goes(tiny_pipeline, tmp_path):
    """The code runs once the teacher's path is filled in."""
    teacher = tiny_pipeline("stable_diffusion")
    save_student(str(teacher), tmp_path / "student", rank=2)
    main(["export", str(tmp_path / "student"), str(tmp_path / "out")])
    card = tmp_path / "out" / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), flags=re.S)
    lines = code.splitlines()
    assert [line for line in lines if "import " in line] == lines[:2]
    assert str(teacher) not in code
    card.write_text(card.read_text().replace(f"path/to/the/teacher/{teacher.name}", str(teacher)))
    assert snippet(tmp_path / "out")["image"].size == (16, 16)


def test_what_cannot_be_exported_is_one_clear_line(student, tiny_teacher, tiny_pipeline, tmp_path, error_line):
    out = tmp_path / "out"
    assert "is a teacher, expected a student" in error_line("export", tiny_teacher, out)
    assert "unknown model 'nothing'" in error_line("export", "nothing", out)
    exported = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "exported")
    (exported / "dmdistill.json").write_text('{"kind": "student", "name": "mine"}')
    assert "mine names no teacher" in error_line("export", exported, out)
    shutil.rmtree(exported)
    assert not out.exists()
    assert "already exists: choose another folder" in error_line("export", student, student)
    (tmp_path / "file").write_text("")
    assert "already exists: choose another folder" in error_line("export", student, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failure_leaves_nothing_behind(student, tmp_path, error_line, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("dmdistill.commands.export.command.export_card", full)
    assert "no space left" in error_line("export", student, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_latents_with_another_noise_schedule_are_refused(tiny_pipeline, tmp_path, error_line):
    source = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "odd")
    diffusers.EDMEulerScheduler().save_pretrained(source / "scheduler")
    save_student(str(source), tmp_path / "student")
    line = error_line("export", tmp_path / "student", tmp_path / "out")
    assert all(
        word in line for word in ("StableDiffusionPipeline with", "schedule EDM", "StableDiffusionPipeline (VP)")
    )
    assert not (tmp_path / "out").exists()


class Hub:
    """What is called of huggingface_hub.HfApi."""

    def __init__(self):
        self.calls = []

    def create_repo(self, name, exist_ok):
        self.calls.append(("create_repo", name, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path):
        self.calls.append(("upload_folder", repo_id, folder_path))


def test_a_student_is_pushed_to_the_hub(student, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    out = tmp_path / "out"
    main(["export", str(student), str(out), "--push-to-hub", "me/owl"])
    assert hub.calls == [("create_repo", "me/owl", True), ("upload_folder", "me/owl", out)]
    printed = capsys.readouterr().out
    assert f"how to load it: {out / 'README.md'}" in printed
    assert "pushed to https://hub/me/owl" in printed


@pytest.mark.parametrize(
    ("error", "text"), [(OSError("401 Unauthorized\nlog in"), "401 Unauthorized"), (OSError(), "OSError")]
)
def test_a_hub_that_fails_is_one_clear_line(error, text, student, tmp_path, monkeypatch, error_line):
    def fail(*_, **__):
        raise error

    hub = Hub()
    hub.upload_folder = fail
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    out = tmp_path / "out"
    line = error_line("export", student, out, "--push-to-hub", "me/owl")
    assert line == f"dmdistill: {out} is written, but was not pushed to me/owl: {text}\n"
    assert (out / "model_index.json").exists()
