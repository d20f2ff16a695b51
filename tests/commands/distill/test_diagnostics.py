"""The probe against mixtures, whose means are known."""

import pytest
import torch

from dmdistill.commands.distill.diagnostics import BINS, Probe, describe_images, fake_lag, saturation_change
from dmdistill.core.generators import Generator
from dmdistill.core.samples import Samples
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
    figures, shares = Probe(z, None, eps).measure(Constant(x), real, fake), []
    for i, index in enumerate((62, 187, 312, 437, 562, 687, 812, 937)):
        sigma = path.time(torch.tensor(index)).double()
        share = sigma**2 / (std**2 + sigma**2)
        assert figures[f"gap_{i}"] == pytest.approx((shift * share).item(), rel=1e-4)
        mean = real.means.reshape(1, 2, 3, 5) + shift
        mu = mean + (1 - share) * (x + sigma * eps - mean)
        assert figures[f"fake_loss_{i}"] == pytest.approx((mu - x).square().mean().item(), rel=1e-4)
        shares.append(share.item())
    assert figures["matching_mean"] == pytest.approx(-shift * sum(shares) / BINS, rel=1e-4)  # back to the teacher


def test_it_looks_at_the_same_noise_every_time(draws):
    z, eps, _ = draws
    probe, real, fake = Probe(z, None, eps), mixture(0, EDM()), mixture(0.1, EDM())
    first = probe.measure(Generator(real), real, fake)
    torch.manual_seed(99)
    assert probe.measure(Generator(real), real, fake) == first


def losses(figures):
    return [figures[f"fake_loss_{i}"] for i in range(BINS)]


def test_a_fake_score_that_knows_the_student_as_the_teacher_its_images_has_no_lag(draws):
    """The same images, noise and denoiser on both sides: 1, whatever they are. Twice the teacher's loss: 2."""
    z, eps, x = draws
    probe, real = Probe(z, None, eps), mixture(0, EDM())
    teacher = probe.measure_teacher(real, Samples(x, None, len(x)))
    figures = probe.measure(Constant(x), real, mixture(0, EDM()))
    assert fake_lag(losses(figures), teacher["teacher_loss"]) == pytest.approx(1, rel=1e-5)
    assert teacher["teacher_mean"] == figures["sample_mean"]
    assert fake_lag([1.0, 3.0], 1.0) == 2
    late = probe.measure(Constant(x), real, mixture(3, EDM()))
    assert fake_lag(losses(late), teacher["teacher_loss"]) > 1


def test_brightness_and_saturation_are_those_of_the_pixels(rng):
    """Grey has no saturation, and pure red that of its range."""
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 5)
    values = describe_images(torch.cat([red, torch.full((2, 3, 4, 5), 0.5)]), "sample", latents=False)
    assert values["sample_saturation"] == 1  # the mean of 2 and 0
    assert values["sample_mean"].item() == pytest.approx((0.5 - 1 / 3) / 2)
    x, move = torch.randn(2, 4, 3, 5, 6, generator=rng, dtype=torch.float64)
    ahead, behind = (describe_images(x + s * move, "x", latents=False)["x_saturation"] for s in (1e-6, -1e-6))
    assert saturation_change(x, move).item() == pytest.approx((ahead - behind).item() / 2e-6, rel=1e-6)
    assert "x_saturation" not in describe_images(x[:, :1], "x", latents=False)


def test_latents_are_described_by_channel(draws):
    _, _, x = draws
    values = describe_images(x, "sample", latents=True)
    assert [values[f"sample_mean_{c}"] for c in range(2)] == [x[:, c].mean() for c in range(2)]
    assert [values[f"sample_std_{c}"] for c in range(2)] == [x[:, c].std() for c in range(2)]
    assert not any("saturation" in key for key in values)
    figures = Probe(x, None, x, latents=True).measure(Constant(x), mixture(0, EDM()), mixture(0.1, EDM()))
    moves = [figures[f"matching_mean_{c}"] for c in range(2)]
    assert sum(moves) / 2 == pytest.approx(figures["matching_mean"])


def test_the_accuracy_of_a_discriminator_is_the_share_that_it_tells(draws):
    """One that calls everything real is right of all real images; a threshold on the mean tells images far apart."""
    z, eps, x = draws
    probe, real = Probe(z, None, eps), mixture(0, EDM())

    def accuracies(discriminator, images):
        figures = probe.measure(Constant(x), real, real, discriminator, Samples(images, None, len(images)))
        return figures["accuracy_generated"], figures["accuracy_real"]

    assert accuracies(lambda x_t, t, cond: torch.ones(len(x_t), 3), x) == (0, 1)
    assert accuracies(lambda x_t, t, cond: x_t.flatten(1).mean(1, keepdim=True) - 500, x[:4] + 1000) == (1, 1)
    assert accuracies(lambda x_t, t, cond: (t > 1).float()[:, None], x[:4]) == (0.375, 0.625)  # five of eight levels
