"""Fig. 4: overlap and gradient of two boxes, blurred, in closed form."""

import json
import math

import pytest
import torch
from PIL import Image

from dmdistill.commands.cli import main
from dmdistill.commands.reproduce.fig4 import experiment as figure4
from dmdistill.commands.reproduce.fig4.experiment import (
    FAKE,
    REAL,
    SIGMAS,
    diffused_densities,
    kl_divergence,
    mean_gradient,
    monte_carlo_gradient,
    overlap,
    score_difference,
)
from dmdistill.core.schedules import EDM
from dmdistill.models.uniform_box import UniformBox


def closed_form(sigma):
    """Mirror images meet at 0, so the overlap is twice what the real one has on the left: an integral of Phi."""

    def integral(u):
        return u * 0.5 * math.erfc(u / math.sqrt(2)) - math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)

    return 2 * sigma / (REAL.high - REAL.low) * (integral(REAL.high / sigma) - integral(REAL.low / sigma))


@pytest.mark.parametrize("sigma", [sigma for sigma in SIGMAS if 0.1 <= sigma <= 20])
def test_the_overlap_is_the_closed_form(sigma):
    assert overlap(sigma) == pytest.approx(closed_form(sigma), rel=1e-5)


def test_the_overlap_grows_with_the_noise_from_nothing_to_all():
    measured = [overlap(sigma) for sigma in SIGMAS]
    assert measured == sorted(set(measured))
    assert measured[0] < 1e-20
    assert measured[-1] > 0.99


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_diffused_densities_are_densities(sigma):
    x, real, fake = diffused_densities(sigma)
    assert [torch.trapezoid(log.exp(), x).item() for log in (real, fake)] == pytest.approx([1, 1], abs=1e-6)
    assert torch.isfinite(real).all()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_gradient_is_autograds(sigma):
    """(mu_fake - mu_real)/sigma^2 is the slope of log p_fake - log p_real."""
    x = torch.linspace(-1 - 3 * sigma, 1 + 3 * sigma, 41, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.full((41,), sigma, dtype=torch.float64)
    (slope,) = torch.autograd.grad((FAKE.log_prob(x, t) - REAL.log_prob(x, t)).sum(), x)
    torch.testing.assert_close(score_difference(x, sigma), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_gradient_is_that_of_the_divergence(sigma, monkeypatch):
    """A generator that only shifts its samples: d KL / d shift, by differences, is the mean of s_fake - s_real."""
    size, step = mean_gradient(sigma), 1e-4
    measured = []
    for shift in (step, -step):
        monkeypatch.setattr(figure4, "FAKE", UniformBox(FAKE.low + shift, FAKE.high + shift, EDM()))
        measured.append(kl_divergence(sigma))
    assert (measured[1] - measured[0]) / (2 * step) == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_samples_meet_the_exact_gradient(sigma):
    measured = [monte_carlo_gradient(sigma, torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert sum(run["sampled"] for run in measured) / 5 == pytest.approx(mean_gradient(sigma), rel=0.01)
    assert all(0.5 < run["with Eq. 8"] < 2 for run in measured)


def test_the_command_writes_picture_and_table(tmp_path, capsys):
    main(["reproduce", "fig4", "--out", str(tmp_path), "--seeds", "2"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fig4.json", "fig4.png"]
    with Image.open(tmp_path / "fig4.png") as picture:
        assert picture.convert("L").getextrema()[0] < 100 < 250 < picture.convert("L").getextrema()[1]
    table = json.loads((tmp_path / "fig4.json").read_text())
    assert [row["sigma"] for row in table["rows"]] == [0, *SIGMAS]
    assert table["rows"][0]["gradient"] == "undefined"
    assert all(math.isfinite(row["gradient"] + row["KL"]) for row in table["rows"][1:])
    assert "undefined" in capsys.readouterr().out
