"""`--distance lpips` for a teacher of latents compares the images that they decode to."""

import pytest
import torch

from dmdistill.commands.distill import functions
from dmdistill.commands.distill.config import RegressionOptions
from dmdistill.metrics.lpips import LPIPS
from dmdistill.models.load import load_teacher

CPU = torch.device("cpu")


@pytest.fixture
def teacher(tiny_pipeline):
    return load_teacher(str(tiny_pipeline("stable_diffusion")))


@pytest.fixture
def lpips(monkeypatch):
    """LPIPS of two small blocks with random weights, at 20 pixels."""
    torch.manual_seed(0)
    model = LPIPS(resize=20, blocks=((5, 1), (7, 1)))
    monkeypatch.setattr(functions, "load_lpips", lambda path, **form: model)
    return model


def test_latents_are_decoded_by_the_teachers_autoencoder(teacher, lpips, rng):
    x, y = torch.randn(2, 3, *teacher.shape, generator=rng)
    distance = functions.load_distance(RegressionOptions(distance="lpips"), teacher, CPU, None)
    vae = teacher.autoencoder.model
    images = [vae.decode(latents / vae.config.scaling_factor).sample for latents in (x, y)]
    found = distance(x, y)
    assert (found.shape, images[0].shape) == ((3,), (3, 3, 16, 16))
    assert (found > 0).all()
    torch.testing.assert_close(found, lpips(*images))
    assert distance(y, y).abs().max() == 0


def test_the_gradient_reaches_the_students_latents_through_the_decoder(teacher, lpips, rng):
    x, y = torch.randn(2, 3, *teacher.shape, generator=rng).requires_grad_().unbind()
    x.retain_grad()
    y.retain_grad()
    functions.load_distance(RegressionOptions(distance="lpips"), teacher, CPU, None)(x, y).sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert y.grad is None
    assert all(parameter.grad is None for parameter in teacher.autoencoder.model.parameters())


def test_another_decoder_takes_the_place_of_the_teachers(teacher, lpips, rng, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    tiny = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    tiny.save_pretrained(tmp_path / "tiny")
    x, y = torch.randn(2, 3, *teacher.shape, generator=rng)
    options = RegressionOptions(distance="lpips", decoder=str(tmp_path / "tiny"))
    found = functions.load_distance(options, teacher, CPU, None)(x, y)
    torch.testing.assert_close(found, lpips(tiny.decode(x).sample, tiny.decode(y).sample))
