"""Teachers of diffusers: the same images as diffusers' own schedulers make of the same noise."""

import dataclasses
import json
import shutil

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from dmdistill.core.denoisers import EDMDenoiser, EpsDenoiser, FlowDenoiser, VDenoiser, X0Denoiser
from dmdistill.core.generators import Generator
from dmdistill.models.diffusers_components import load_autoencoder
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.diffusers_scheduler import read_schedule
from helpers.tiny_models import unet2d_network


def unet(**changes):
    """2 channels of 8 x 12, random in every weight."""
    return unet2d_network(**{"sample_size": (8, 12), "in_channels": 2, "out_channels": 2} | changes)


@pytest.fixture
def folder(tmp_path):
    """Writes a network and a scheduler as a network's folder with scheduler/ in it."""

    def write(network, scheduler, name="model"):
        network.save_pretrained(tmp_path / name)
        scheduler.save_pretrained(tmp_path / name / "scheduler")
        return tmp_path / name

    return write


@torch.no_grad()
def sampled(network, scheduler, x, *, steps, timesteps=None, scale=lambda t: t):
    """What diffusers makes of x, step by step, at the scheduler's times or at others of the same spacing."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        f = network(scheduler.scale_model_input(x, t), scale(t), return_dict=False)[0]
        x = scheduler.step(f, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("prediction", "denoiser"), [("epsilon", EpsDenoiser), ("v_prediction", VDenoiser), ("sample", X0Denoiser)]
)
def test_ddim_is_that_of_diffusers(prediction, denoiser, betas, folder):
    """Its 27 steps of 37 times, and one more from time 0, are our 28: 999 down to 0, and the clean image."""
    network = unet()
    scheduler = diffusers.DDIMScheduler(beta_schedule=betas, prediction_type=prediction, clip_sample=False)
    teacher = load_diffusers(str(folder(network, scheduler)))
    assert (type(teacher.denoiser), teacher.shape, teacher.evaluations) == (denoiser, (2, 8, 12), 50)
    z = torch.randn(3, 2, 8, 12)
    expected = sampled(network, scheduler, z, steps=27, timesteps=torch.arange(999, -1, -37))
    images = dataclasses.replace(teacher, steps=28).images(z)
    torch.testing.assert_close(images / expected.std(), expected / expected.std(), rtol=0, atol=1e-4)


def test_zero_terminal_snr_is_kept(folder):
    """There mu is -F whatever z is, and one step of diffusers' DDIM is our generator."""
    network = unet()
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    teacher = load_diffusers(str(folder(network, scheduler)))
    assert teacher.denoiser.schedule.alpha(torch.tensor([999.0])) < 1e-3
    z = torch.randn(3, 2, 8, 12)
    with torch.no_grad():
        one = Generator(teacher.denoiser)(z)
    torch.testing.assert_close(one, sampled(network, scheduler, z, steps=1), rtol=1e-5, atol=1e-5)


def test_a_flow_is_that_of_diffusers(folder):
    network = unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher = load_diffusers(str(folder(network, scheduler)))
    assert isinstance(teacher.denoiser, FlowDenoiser)
    z = torch.randn(3, 2, 8, 12)
    times = teacher.denoiser.schedule.solver_times(10)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.001, 10).tolist())
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=0, atol=1e-6)
    x = z
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, return_dict=False)[0], t, x, return_dict=False)[0]
    torch.testing.assert_close(dataclasses.replace(teacher, steps=10).images(z), x, rtol=1e-5, atol=1e-5)


def test_edm_is_that_of_diffusers(folder):
    network = unet()
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)
    teacher = load_diffusers(str(folder(network, scheduler)))
    assert isinstance(teacher.denoiser, EDMDenoiser)
    assert (teacher.denoiser.sigma_data, teacher.solver, teacher.evaluations) == (0.7, "heun", 35)
    z = torch.randn(3, 2, 8, 12)
    expected = sampled(network, scheduler, 50.0 * z, steps=18)
    euler = dataclasses.replace(teacher, solver="ddim").images(z)
    torch.testing.assert_close(euler, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_is_that_of_flux(kind):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    options = {"use_dynamic_shifting": True, "max_shift": 1.1, "time_shift_type": kind}
    config = dict(diffusers.FlowMatchEulerDiscreteScheduler(**options).config)
    config["_class_name"] = "FlowMatchEulerDiscreteScheduler"
    path = read_schedule(config, tokens=1000).schedule
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.001, 5).tolist(), mu=calculate_shift(1000, max_shift=1.1))
    torch.testing.assert_close(scheduler.sigmas.double(), path.solver_times(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("classes", "taught_none"), [(3, False), (4, True)])
def test_classes_reach_the_network(classes, taught_none, folder):
    """Another class, another image; a class that means none is the network's last, where it was taught one."""
    network = unet(num_class_embeds=classes)
    teacher = load_diffusers(str(folder(network, diffusers.DDPMScheduler())))
    if taught_none:
        teacher = dataclasses.replace(teacher, conditions=type(teacher.conditions)(teacher.conditions.names[:3]))
    assert len(teacher.conditions) == 3
    x, t = torch.randn(2, 2, 8, 12), torch.tensor([500.0, 20.0])
    cond = teacher.condition(torch.tensor([2, 0]))
    adapter = teacher.denoiser.net
    with torch.no_grad():
        expected = network(x, t, class_labels=torch.tensor([2, 0])).sample
        torch.testing.assert_close(adapter(x, t, cond), expected)
        if taught_none:
            none = network(x, t, class_labels=torch.tensor([3, 3])).sample
            torch.testing.assert_close(adapter(x, t, cond.null()), none)
        else:
            with pytest.raises(ValueError, match="no null class"):
                adapter(x, t, cond.null())
        with pytest.raises(ValueError, match="each sample needs a label"):
            adapter(x, t, None)


def test_dit_is_told_classes_and_its_variance_is_dropped(folder):
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        out_channels=6,
        num_layers=1,
        norm_num_groups=1,
        sample_size=8,
        num_embeds_ada_norm=5,
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    teacher = load_diffusers(str(folder(network, diffusers.DDIMScheduler())))
    assert (len(teacher.conditions), teacher.shape) == (5, (3, 8, 8))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([500.0, 20.0])
    cond = teacher.condition(torch.tensor([4, 0]))
    with torch.no_grad():
        for told, numbers in ((cond, [4, 0]), (cond.null(), [5, 5])):
            expected = network(x, t, class_labels=torch.tensor(numbers)).sample[:, :3]
            torch.testing.assert_close(teacher.denoiser.net(x, t, told), expected)


def test_an_autoencoder_decodes_latents_as_diffusers_does(tmp_path):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.3,
        shift_factor=0.1,
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    latents = torch.randn(2, 3, 4, 6)
    autoencoder = load_autoencoder(str(tmp_path / "vae"))
    with torch.no_grad():
        expected = vae.decode(latents / 0.3 + 0.1).sample
    assert expected.shape == (2, 3, 8, 12)
    torch.testing.assert_close(autoencoder.decode(latents), expected)


def spoil(folder, spoilt):
    """One thing wrong with a folder."""
    config, schedule = folder / "config.json", folder / "scheduler" / "scheduler_config.json"
    if spoilt == "no scheduler":
        shutil.rmtree(folder / "scheduler")
    elif spoilt == "scheduler":
        schedule.write_text(json.dumps({"_class_name": "MagicScheduler"}))
    elif spoilt == "prediction":
        schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"prediction_type": "tea"}))
    elif spoilt == "class":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Kandinsky3UNet"}))
    elif spoilt == "padding":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"downsample_padding": [1, 1, 1]}))
    elif spoilt == "weights":
        next(folder.glob("*.safetensors")).rename(folder / "diffusion_pytorch_model.bin")
    elif spoilt == "damaged":
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoilt", "match"),
    [
        ("no scheduler", "holds no scheduler/scheduler_config.json"),
        ("scheduler", "scheduler MagicScheduler: no noise schedule"),
        ("prediction", "scheduler DDIMScheduler: prediction_type 'tea', expected epsilon, v_prediction, sample"),
        ("class", "is a 'Kandinsky3UNet', expected one of UNet2DModel"),
        ("padding", r"is padded by \(?\[?1, 1, 1"),
        ("weights", "holds no .safetensors"),
        ("damaged", r"diffusion_pytorch_model\.safetensors is cut short"),
    ],
)
def test_a_spoilt_folder_is_one_clear_line(spoilt, match, folder):
    model = folder(unet(), diffusers.DDIMScheduler())
    spoil(model, spoilt)
    with pytest.raises(ValueError, match=match) as caught:
        load_diffusers(str(model))
    assert "\n" not in str(caught.value)


def test_noise_prediction_at_zero_terminal_snr_is_refused(folder):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="noise prediction on a path with alpha = 0"):
        load_diffusers(str(folder(unet(), scheduler)))


def test_a_hub_id_that_cannot_be_had_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing cannot be downloaded") as caught:
        load_diffusers("nobody/nothing")
    assert "\n" not in str(caught.value)
