"""The uniform density on a box: its posterior mean and its score against other ways to them."""

import mpmath
import pytest
import torch

from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.models.uniform_box import UniformBox

PLACES = (-0.7, -0.3, 0.29, 0.4, 0.5, 0.6, 0.71, 1.5)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 1.0, 80.0])
def test_the_mean_is_that_of_many_digits(sigma):
    """By the integrals over the box, where both tails of the normal density are far too small for fp64."""
    x = torch.tensor(PLACES, dtype=torch.float64)[:, None]
    t = torch.full((len(x),), sigma, dtype=torch.float64)
    mean, log_prob = UniformBox(0.3, 0.7, EDM())(x, t), UniformBox(0.3, 0.7, EDM()).log_prob(x, t)
    with mpmath.workdps(900):
        low, high = mpmath.mpf(0.3), mpmath.mpf(0.7)
        for i, place in enumerate(PLACES):
            a, b = (low - place) / sigma, (high - place) / sigma
            mass = (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2
            expected = place - sigma * (mpmath.npdf(b) - mpmath.npdf(a)) / mass
            assert abs(mean[i].item() - expected) < 1e-12
            assert abs(log_prob[i].item() - mpmath.log(mass / (high - low))) < 1e-11


@pytest.mark.parametrize("schedule", [EDM(), VP.linear_betas(), Flow()], ids=lambda schedule: type(schedule).__name__)
def test_the_mean_is_tweedies(schedule):
    """alpha mu = x_t + sigma^2 s with the score from autograd, on every path (Eq. 4)."""
    box, rng = UniformBox(-0.2, 0.6, schedule), torch.Generator().manual_seed(0)
    x = box.sample((7, 2, 3, 5), rng)
    t = schedule.time(torch.tensor([20, 100, 300, 500, 700, 900, 980])).double()
    x_t = schedule.diffuse(x, torch.randn(x.shape, generator=rng, dtype=x.dtype), t).requires_grad_()
    (score,) = torch.autograd.grad(box.log_prob(x_t, t).sum(), x_t)
    alpha, sigma = (c[:, None, None, None] for c in (schedule.alpha(t), schedule.sigma(t)))
    torch.testing.assert_close(alpha * box(x_t, t), x_t + sigma**2 * score, atol=1e-9, rtol=0)


def test_samples_fill_the_box():
    x = UniformBox(0.3, 0.7, EDM()).sample((10000, 2), torch.Generator().manual_seed(0))
    assert (x.min() >= 0.3, x.max() <= 0.7) == (True, True)
    assert abs(x.mean() - 0.5) < 0.004
    assert abs(x.std() - 0.4 / 12**0.5) < 0.002


def test_a_box_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"a box from 1.0 to 1.0, expected low < high"):
        UniformBox(1.0, 1.0, EDM())
