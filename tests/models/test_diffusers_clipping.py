"""Predicted images are clipped in sampling as the scheduler clips them, and nowhere else."""

import dataclasses

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.schedules import VP
from dmdistill.models.clipping import ClippedDenoiser, Clipping
from dmdistill.models.diffusers_pipeline import load_diffusers
from dmdistill.models.diffusers_scheduler import read_schedule
from helpers.tiny_models import unet2d

SCHEDULERS = {
    "clip": ({"clip_sample": True}, Clipping(1.0)),
    "range": ({"clip_sample": True, "clip_sample_range": 0.5}, Clipping(0.5)),
    "threshold": ({"thresholding": True}, Clipping(1.0, 0.995)),
    "high": ({"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8}, Clipping(1.5, 0.8)),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_ddim_with_clipping_is_that_of_diffusers(kind, tmp_path):
    """Its noise is then of the clipped image, too (`use_clipped_model_output`), as DDPM's posterior has it."""
    options, clipping = SCHEDULERS[kind]
    scheduler = diffusers.DDIMScheduler(**options)
    teacher = load_diffusers(str(unet2d(tmp_path / "unet", scheduler)))
    assert teacher.clipping == clipping
    teacher = dataclasses.replace(teacher, steps=28)
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = z
    scheduler.set_timesteps(27)  # steps of 37 times; one more, from time 0, leads to the clean image
    with torch.no_grad():
        for t in range(999, -1, -37):
            f = teacher.network.model(x, t, return_dict=False)[0]
            x = scheduler.step(f, t, x, use_clipped_model_output=True, return_dict=False)[0]
    images = teacher.images(z)
    torch.testing.assert_close(images, x, rtol=1e-3, atol=1e-3)
    assert images.abs().max() <= clipping.limit + 1e-6
    assert (dataclasses.replace(teacher, clipping=None).images(z) - x).abs().max() > 0.1


def test_the_posterior_mean_of_ddpm_is_that_of_the_clipped_image(tmp_path):
    scheduler = diffusers.DDPMScheduler()  # whose default is to clip
    teacher = load_diffusers(str(unet2d(tmp_path / "unet", scheduler)))
    x_t, t = torch.randn(2, 3, 8, 8), torch.full((2,), 700.0)
    with torch.no_grad():
        mu = ClippedDenoiser(teacher.denoiser, teacher.clipping)(x_t, t)
        f = teacher.network.model(x_t, t, return_dict=False)[0]
    expected = scheduler.step(f, 700, x_t).pred_original_sample
    torch.testing.assert_close(mu, expected, rtol=1e-4, atol=1e-4)
    assert (teacher.guided_denoiser(x_t, t) - mu).abs().max() > 0.1  # mu_real of the distillation gradient


@pytest.mark.parametrize("name", ["PNDM", "EulerDiscrete", "DPMSolverMultistep"])
def test_schedulers_that_do_not_clip_leave_images_alone(name):
    config = dict(getattr(diffusers, f"{name}Scheduler")().config) | {"_class_name": f"{name}Scheduler"}
    assert read_schedule(config).clipping is None


def test_thresholding_is_that_of_diffusers():
    scheduler = diffusers.DDIMScheduler(thresholding=True, sample_max_value=2.0, dynamic_thresholding_ratio=0.9)
    x = 2 * torch.randn(5, 3, 4, 6)
    torch.testing.assert_close(Clipping(2.0, 0.9)(x), scheduler._threshold_sample(x))


@pytest.mark.parametrize(("limit", "quantile"), [(0.0, None), (-1.0, None), (1.0, 1.5), (float("nan"), None)])
def test_clipping_of_no_sense_is_refused(limit, quantile):
    with pytest.raises(ValueError, match="expected a limit above 0"):
        Clipping(limit, quantile)


def test_a_clipped_denoiser_has_no_parameters_of_its_own():
    inner = X0Denoiser(torch.nn.Linear(2, 2), VP.linear_betas())
    outer = ClippedDenoiser(inner, Clipping())
    assert {id(parameter) for parameter in outer.parameters()} == {id(parameter) for parameter in inner.parameters()}
    assert torch.equal(outer.weight(torch.ones(3)), inner.weight(torch.ones(3)))


@pytest.mark.parametrize(("clipping", "text"), [(Clipping(2.0), "[-2, 2]"), (Clipping(1.0, 0.9), "quantile 0.9")])
def test_clipping_is_described(clipping, text):
    assert text in str(clipping)
