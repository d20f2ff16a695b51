"""The probe against mixtures, whose means are known."""

import pytest
import torch

from dmdistill.commands.distill.diagnostics import BINS, Probe
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import EDM
from dmdistill.models.gaussian_mixture import GaussianMixture

SHAPE = (6, 2, 3, 5)


class Constant(torch.nn.Module):
    """A generator whose samples are given."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def sample(self, z, cond=None):
        return self.x


def mixture(offset, path, *, std=0.3):
    return GaussianMixture(torch.linspace(-1, 1, 30).reshape(1, 2, 3, 5) + offset, path, stds=std)


@pytest.fixture
def draws(rng):
    return (torch.randn(SHAPE, generator=rng) for _ in range(3))


def test_equal_means_have_no_gap(draws):
    z, eps, _ = draws
    real = mixture(0, EDM())
    figures = Probe(z, None, eps).measure(Generator(real), real, mixture(0, EDM()))
    assert [figures[f"gap_{i}"] for i in range(BINS)] == [0] * BINS
    x = Generator(real)(z)
    assert figures["sample_mean"] == pytest.approx(x.mean().item())
    assert figures["sample_std"] == pytest.approx(x.std().item())


def test_gaps_and_losses_are_those_of_the_formula(draws):
    """Of N(m, s^2) the mean is m + s^2/(s^2 + sigma^2) (x_t - m); shifted by d it differs by d sigma^2/(s^2 + sigma^2).

    The bins' middles are 62, 187, ... of 1000.
    """
    z, eps, x = draws
    path, std, shift = EDM(), 0.3, 0.7
    real, fake = mixture(0, path, std=std), mixture(shift, path, std=std)
    figures = Probe(z, None, eps).measure(Constant(x), real, fake)
    for i, index in enumerate((62, 187, 312, 437, 562, 687, 812, 937)):
        sigma = path.time(torch.tensor(index)).double()
        share = sigma**2 / (std**2 + sigma**2)
        assert figures[f"gap_{i}"] == pytest.approx((shift * share).item(), rel=1e-4)
        mean = real.means.reshape(1, 2, 3, 5) + shift
        mu = mean + (1 - share) * (x + sigma * eps - mean)
        assert figures[f"fake_loss_{i}"] == pytest.approx((mu - x).square().mean().item(), rel=1e-4)


def test_it_looks_at_the_same_noise_every_time(draws):
    z, eps, _ = draws
    probe, real, fake = Probe(z, None, eps), mixture(0, EDM()), mixture(0.1, EDM())
    first = probe.measure(Generator(real), real, fake)
    torch.manual_seed(99)
    assert probe.measure(Generator(real), real, fake) == first
