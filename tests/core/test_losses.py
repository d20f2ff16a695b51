"""The losses' gradients and minima, against closed forms."""

import copy

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import Denoiser, X0Denoiser
from dmdistill.core.losses import (
    FLOOR,
    WEIGHTS,
    Estimates,
    denoising_loss,
    distribution_matching_loss,
    pseudo_huber,
    regression_loss,
)
from dmdistill.core.schedules import expand
from dmdistill.models.gaussian_mixture import GaussianMixture

SHAPE = (7, 2, 3, 5)  # B != C != H != W


def draw(schedule, rng, shape=SHAPE):
    """Images, times and noise in fp64."""
    x, eps = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    return x.requires_grad_(), schedule.sample_t(shape[0], 0.02, 0.98, rng=rng).double(), eps


def gradient(x, *args, **kwargs):
    return torch.autograd.grad(distribution_matching_loss(x, *args, **kwargs), x)[0]


class Linear(nn.Module):
    """A small network whose gradients can be watched."""

    def __init__(self, rng):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE[1:], generator=rng, dtype=torch.float64))

    def forward(self, x_t, t, cond=None):
        return self.weight * x_t / (1 + expand(t, x_t))


class Fixed(Denoiser):
    """Answers mu, whatever it is asked."""

    def __init__(self, mu, schedule):
        super().__init__(nn.Identity(), schedule)
        self.mu = mu

    def forward(self, x_t, t, cond=None):
        return self.mu


@pytest.mark.parametrize("name", WEIGHTS)
def test_matching_gradient_is_its_definition(schedule, mixture, rng, name):
    real, fake = mixture(schedule), X0Denoiser(Linear(rng), schedule)
    x, t, eps = draw(schedule, rng)
    with torch.no_grad():
        x_t = schedule.diffuse(x, eps, t)
        mu_real, mu_fake = real(x_t, t), fake(x_t, t)
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        weight = WEIGHTS[name](Estimates(x, x_t, t, None, mu_real, mu_fake, alpha, sigma))
    expected = weight * (mu_fake - mu_real) / x.numel()
    torch.testing.assert_close(
        gradient(x, real, fake, t, eps, weight=WEIGHTS[name]), expected, rtol=1e-12, atol=1e-15 * x.abs().max().item()
    )


@pytest.mark.parametrize(
    ("name", "w_t"),
    [
        ("eq8", lambda alpha, sigma, norm, numel: sigma**2 / alpha * numel / norm),
        ("sigma", lambda alpha, sigma, norm, numel: sigma / alpha),
        ("sigma3", lambda alpha, sigma, norm, numel: sigma**3 / alpha),
    ],
)
def test_weights_are_the_papers(schedule, rng, name, w_t):
    """Each is w_t alpha^2/sigma^2, what is left of w_t alpha (s_fake - s_real); eq8 leaves one alpha to the caller."""
    x, t, mu_real = draw(schedule, rng)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    ours = WEIGHTS[name](Estimates(x, x, t, None, mu_real, mu_real, expand(alpha, x), expand(sigma, x))).flatten(1)
    norm = (mu_real - x).abs().flatten(1).sum(1)
    paper = w_t(alpha, sigma, norm, x[0].numel()) * alpha**2 / sigma**2
    assert ours.shape == (7, 1)
    torch.testing.assert_close(ours[:, 0] * (alpha if name == "eq8" else 1), paper, rtol=1e-12, atol=0)


def test_normaliser_is_per_sample(schedule, mixture, rng):
    """A sample's gradient depends on no other sample, but for the mean over the batch."""
    real, fake = mixture(schedule), X0Denoiser(Linear(rng), schedule)
    x, t, eps = draw(schedule, rng)
    together = gradient(x, real, fake, t, eps)
    for i in range(len(x)):
        alone = gradient(x[i : i + 1].detach().requires_grad_(), real, fake, t[i : i + 1], eps[i : i + 1])
        torch.testing.assert_close(together[i : i + 1] * len(x), alone, rtol=1e-10, atol=1e-15)


def test_eq8_normaliser_makes_the_step_as_large_as_the_teachers_error(schedules, rng):
    """Where the fake score finds x perfect, a sample's gradients have mean magnitude 1, however far the teacher is."""
    x, t, eps = draw(schedules["edm"], rng)
    far = x.detach() + 10.0 ** torch.arange(-3, 4).double().reshape(7, 1, 1, 1) * eps
    grad = gradient(x, Fixed(far, schedules["edm"]), Fixed(x.detach(), schedules["edm"]), t, eps) * x.numel()
    torch.testing.assert_close(grad.abs().flatten(1).mean(1), torch.ones(7).double(), rtol=1e-10, atol=0)


def test_no_gradient_where_fake_equals_real(schedule, mixture, rng):
    real = mixture(schedule)
    x, t, eps = draw(schedule, rng)
    assert not gradient(x, real, copy.deepcopy(real), t, eps).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_sample_has_a_finite_gradient(schedules, rng, dtype):
    x, t, eps = (tensor.detach().to(dtype) for tensor in draw(schedules["edm"], rng))
    real, fake = Fixed(x.clone(), schedules["edm"]), Fixed(x + 1e-3, schedules["edm"])
    grad = gradient(x.requires_grad_(), real, fake, t, eps) * x.numel()
    torch.testing.assert_close(grad, torch.full_like(x, 1e-3 / FLOOR), rtol=1e-3, atol=0)


def leaves(node, seen=None):
    """Every tensor that a loss would send a gradient to."""
    seen = set() if seen is None else seen
    found = [node.variable] if hasattr(node, "variable") else []
    for below, _ in node.next_functions:
        if below is not None and below not in seen:
            seen.add(below)
            found += leaves(below, seen)
    return found


def test_teacher_and_fake_are_only_asked(schedule, rng):
    """No graph: x is the loss's only leaf, nothing of either network is saved, and neither changes."""
    real, fake = (X0Denoiser(Linear(rng), schedule) for _ in range(2))
    before = [copy.deepcopy(network.state_dict()) for network in (real, fake)]
    x, t, eps = draw(schedule, rng)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = distribution_matching_loss(x, real, fake, t, eps)
    assert [leaf is x for leaf in leaves(loss.grad_fn)] == [True]
    assert not any(tensor.data_ptr() == p.data_ptr() for tensor in saved for p in (real.net.weight, fake.net.weight))
    loss.backward()
    for network, state in zip((real, fake), before, strict=True):
        assert network.net.weight.grad is None
        assert torch.equal(network.net.weight, state["net.weight"])


@pytest.mark.parametrize("dim", [1, 2])
def test_matching_gradient_is_that_of_the_diffused_kl(schedule, dim):
    """Eq. 7 with w = 1 against autograd of the closed form of KL(p_fake_t | p_real_t), in the generator's parameters.

    x = theta + s z makes p_fake = N(theta, s^2 I). The integrand is quadratic in (z, eps), so the mean over all signs
    of z and eps in {-1, 1} is the expectation itself and not an estimate of it.
    """
    m, r = torch.linspace(0.5, 0.8, dim, dtype=torch.float64), 0.7
    theta = torch.linspace(-0.3, 0.9, dim, dtype=torch.float64).requires_grad_()
    s = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * (2 * dim))
    z, eps = signs[:, :dim], signs[:, dim:]
    real = GaussianMixture(m[None], schedule, stds=r)
    fake = GaussianMixture(theta.detach()[None], schedule, stds=s.detach())
    for t in schedule.time(torch.tensor([20, 100, 500, 900, 980])).double():
        alpha, sigma = schedule.alpha(t[None]), schedule.sigma(t[None])
        var_fake, var_real = (alpha * s) ** 2 + sigma**2, (alpha * r) ** 2 + sigma**2
        kl = 0.5 * (dim * ((var_real / var_fake).log() + var_fake / var_real - 1))
        kl = kl + 0.5 * alpha**2 * ((theta - m) ** 2).sum() / var_real
        expected = torch.autograd.grad(kl.sum(), (theta, s))

        loss = distribution_matching_loss(
            theta + s * z,
            real,
            fake,
            t.expand(len(z)),
            eps,
            weight=lambda at: (at.alpha / at.sigma) ** 2,
        )
        ours = torch.autograd.grad(loss * dim, (theta, s))  # the loss is a mean over dimensions, the KL a sum
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_denoising_loss_is_least_at_the_exact_mean(schedule, mixture, rng):
    """Along any perturbation the loss is a parabola whose minimum is the exact mean, within the Monte-Carlo error."""
    exact, count = mixture(schedule), 10_000
    x = exact.sample(count, rng).double()
    t, eps = (
        schedule.sample_t(count, 0.3, 1, rng=rng).double(),
        torch.randn(x.shape, generator=rng, dtype=torch.float64),
    )
    mu = exact(schedule.diffuse(x, eps, t), t)

    class Perturbed(Denoiser):
        def __init__(self, direction, size):
            super().__init__(nn.Identity(), schedule)
            self.direction, self.size = direction, size

        def forward(self, x_t, t, cond=None):
            return mu + self.size * self.direction(x_t / expand(schedule.sigma(t), x_t))

        def weight(self, t):
            return torch.ones_like(t)

    for direction in (torch.ones_like, torch.tanh, torch.sin, lambda x: x[..., :1].sign().expand_as(x)):
        below, least, above = (denoising_loss(Perturbed(direction, size), x, t, eps) for size in (-0.2, 0.0, 0.2))
        assert least < below
        assert least < above
        slope, curvature = (above - below) / 0.4, (above + below - 2 * least) / 0.04
        size = (-slope / curvature).abs()
        assert size < 0.005  # measured: .0015


def test_denoising_loss_is_its_definition(schedule, mixture, rng):
    exact = mixture(schedule)

    class Weighted(Denoiser):
        def forward(self, x_t, t, cond=None):
            return exact(x_t, t)

        def weight(self, t):
            return 1 + t

    x, t, eps = (tensor.detach() for tensor in draw(schedule, rng))
    expected = []
    for i in range(len(x)):
        x_t = schedule.alpha(t[i : i + 1]) * x[i] + schedule.sigma(t[i : i + 1]) * eps[i]
        expected.append((1 + t[i]) * ((exact(x_t[None], t[i : i + 1])[0] - x[i]) ** 2).mean())
    ours = denoising_loss(Weighted(nn.Identity(), schedule), x, t, eps)
    torch.testing.assert_close(ours, torch.stack(expected).mean(), rtol=1e-10, atol=0)


def test_denoising_loss_trains_the_fake_score_alone(schedule, rng):
    fake = X0Denoiser(Linear(rng), schedule)
    x, t, eps = draw(schedule, rng)
    denoising_loss(fake, x.detach(), t, eps).backward()
    assert fake.net.weight.grad.abs().min() > 0


def test_conditions_reach_both_networks(schedule, mixture, labels, rng):
    """Real and fake are asked about the sample's own class: a fake equal to real within the class gives no gradient."""
    real, cond = mixture(schedule), labels([1] * 7, 3)
    fake = GaussianMixture(real.means[1:2], schedule, stds=real.stds[1:2], classes=torch.tensor([0]))
    x, t, eps = draw(schedule, rng)

    class OneClass(Denoiser):
        def forward(self, x_t, t, cond=None):
            return fake(x_t, t)

    assert gradient(x, real, OneClass(nn.Identity(), schedule), t, eps, cond).abs().max() < 1e-12
    assert gradient(x, real, OneClass(nn.Identity(), schedule), t, eps).abs().max() > 1e-6


def test_regression_is_the_mean_distance(rng):
    x, y = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)
    assert regression_loss(x, y, lambda x, y: torch.arange(7.0)) == 3


def test_pseudo_huber_is_a_distance_between_l2_and_l1(rng):
    """Zero for equal images, symmetric, |x - y| - c far away, (x - y)^2 / 2c close by, one value per sample."""
    x = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    y = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    assert not pseudo_huber(x, x).any()
    assert torch.equal(pseudo_huber(x, y), pseudo_huber(y, x))
    far, close = torch.full_like(x, 100.0), torch.full_like(x, 1e-5)
    torch.testing.assert_close(pseudo_huber(x + far, x), torch.full((7,), 99.97).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(pseudo_huber(x + close, x), torch.full((7,), 1e-10 / 0.06).double(), rtol=1e-4, atol=0)
    only = x.clone()
    only[3] += 1
    assert pseudo_huber(only, x).nonzero().tolist() == [[3]]


def test_a_weight_of_one_number_per_sample_is_not_broadcast_over_pixels(schedule, mixture, rng):
    real, fake = mixture(schedule), X0Denoiser(Linear(rng), schedule)
    x, t, eps = draw(schedule, rng)
    flat = gradient(x, real, fake, t, eps, weight=lambda at: at.alpha.flatten() + 1)
    assert torch.equal(flat, gradient(x, real, fake, t, eps, weight=lambda at: at.alpha + 1))


def test_a_weight_sees_all_that_the_gradient_is_made_of(schedule, mixture, rng):
    """Times, conditions and both estimates: a weight of any of them needs no other parameter."""
    records = []

    def weight(at):
        records.append(at)
        return torch.ones_like(at.alpha)

    real, fake = mixture(schedule), X0Denoiser(Linear(rng), schedule)
    x, t, eps = draw(schedule, rng)
    gradient(x, real, fake, t, eps, weight=weight)
    [at] = records
    assert torch.equal(at.x_t, schedule.diffuse(x, eps, t))
    assert torch.equal(at.mu_real, real(at.x_t, t))
    assert torch.equal(at.mu_fake, fake(at.x_t, t))
    assert torch.equal(at.t, t)
    assert not any(tensor.requires_grad for tensor in (at.x, at.x_t, at.mu_real, at.mu_fake))
