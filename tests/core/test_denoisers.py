"""Every parameterisation against an exact mixture, whose posterior mean is known."""

import pytest
import torch
from torch import nn

from dmdistill.commands.plan.tensor_ledger import Ledger
from dmdistill.core.denoisers import (
    Denoiser,
    EDMDenoiser,
    EpsDenoiser,
    FlowDenoiser,
    GuidedDenoiser,
    VDenoiser,
    X0Denoiser,
)
from dmdistill.core.schedules import expand
from dmdistill.models.gaussian_mixture import GaussianMixture, ring, two_modes

SIGMA_DATA = 0.5


class Inverse(nn.Module):
    """A perfect network: the F for which a parameterisation's mu is the exact one. It answers in x_t's precision."""

    def __init__(self, exact, solve):
        super().__init__()
        self.exact, self.solve, self.asked = exact, solve, 0

    def forward(self, x_t, t, cond=None):
        self.asked += 1
        x, t = x_t.double(), t.double()
        alpha, sigma = expand(self.exact.schedule.alpha(t), x), expand(self.exact.schedule.sigma(t), x)
        return self.solve(self.exact(x, t, cond), x, alpha, sigma).to(x_t.dtype)


class InverseEDM(Inverse):
    """The same behind EDM's preconditioning: it sees c_in x_t and ln(sigma)/4 and must undo both."""

    def forward(self, x_t, t, cond=None):
        self.asked += 1
        sigma = (4 * t.double()).exp()
        s = expand(sigma, x_t)
        total = s**2 + SIGMA_DATA**2
        x = x_t.double() * total.sqrt()
        mu = self.exact(x, sigma, cond)
        return ((mu - SIGMA_DATA**2 / total * x) * total.sqrt() / (s * SIGMA_DATA)).to(x_t.dtype)


def eps(mu, x, alpha, sigma):
    return (x - alpha * mu) / sigma


# On which path, what the network predicts, and the largest error of mu in fp32 over all times, in units of the
# data's std, as measured and rounded up. A noise predictor's fp32 is divided by alpha, .006 at the end of "vp".
KINDS = {
    "x0-edm": ("edm", X0Denoiser, lambda mu, *_: mu, 5e-7),
    "x0-vp": ("vp", X0Denoiser, lambda mu, *_: mu, 5e-7),
    "x0-flow": ("flow", X0Denoiser, lambda mu, *_: mu, 5e-7),
    "eps-vp": ("vp", EpsDenoiser, eps, 1e-4),
    "eps-edm": ("edm", EpsDenoiser, eps, 5e-5),
    "v-vp": ("vp", VDenoiser, lambda mu, x, alpha, sigma: (alpha * x - mu) / sigma, 1e-6),
    "flow": ("flow", FlowDenoiser, lambda mu, x, alpha, sigma: (x - mu) / sigma, 1e-6),
    "edm": ("edm", EDMDenoiser, None, 2e-6),
}


@pytest.fixture(params=KINDS)
def kind(request, schedules, mixture):
    """(denoiser of a perfect network, exact teacher, fp32 bound)."""
    schedule, cls, solve, bound = KINDS[request.param]
    exact = mixture(schedules[schedule])
    net = Inverse(exact, solve) if solve else InverseEDM(exact, None)
    return cls(net, exact.schedule), exact, bound


def diffused(exact, t, rng, dtype):
    """Images of the teacher, each diffused to its own time."""
    x = exact.sample(len(t), rng).to(dtype)
    return exact.schedule.diffuse(x, torch.randn(x.shape, generator=rng, dtype=dtype), t)


def error(mu, exact_mu):
    """Per sample, the largest error of a pixel in units of the images' std (about .6), at least its own scale."""
    return ((mu.double() - exact_mu.double()).abs() / 0.6).flatten(1).amax(1)


def test_every_parameterisation_is_exact_in_fp64(kind, every_time, rng):
    denoiser, exact, _ = kind
    t = every_time(exact.schedule).double()
    x_t = diffused(exact, t, rng, torch.float64)
    assert error(denoiser(x_t, t), exact(x_t, t)).max() < 1e-10


def test_every_parameterisation_in_fp32(kind, every_time, rng):
    denoiser, exact, bound = kind
    t = every_time(exact.schedule)
    x_t = diffused(exact, t, rng, torch.float32)
    mu = denoiser(x_t, t)
    assert mu.dtype == torch.float32
    assert mu.shape == x_t.shape
    assert error(mu, exact(x_t.double(), t.double())).max() < bound


def test_weight_makes_the_native_loss(kind, every_time, rng):
    """weight(t) |mu - x|^2 is the loss the base model was trained with, for any answer F and not only a perfect one."""
    denoiser, exact, _ = kind
    t = every_time(exact.schedule).double()
    x = exact.sample(len(t), rng).double()
    noise = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    x_t, f = exact.schedule.diffuse(x, noise, t), torch.randn(x.shape, generator=rng, dtype=torch.float64)
    denoiser.net = Answer(f)
    alpha, sigma = expand(exact.schedule.alpha(t), x), expand(exact.schedule.sigma(t), x)
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    target = {
        X0Denoiser: x,
        EpsDenoiser: noise,
        VDenoiser: alpha * noise - sigma * x,
        FlowDenoiser: noise - x,
        EDMDenoiser: (x - c_skip * x_t) / c_out,
    }[type(denoiser)]
    ours = denoiser.weight(t) * ((denoiser(x_t, t) - x) ** 2).flatten(1).sum(1)
    torch.testing.assert_close(ours, ((f - target) ** 2).flatten(1).sum(1), rtol=1e-9, atol=0)


class Answer(nn.Module):
    """A network that gives one answer, in the precision it likes."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x_t, t, cond=None):
        return self.f


def test_mu_is_fp32_from_a_bf16_network(kind, every_time, rng):
    denoiser, exact, _ = kind
    t = every_time(exact.schedule)[::100]
    x_t = diffused(exact, t, rng, torch.float32)
    denoiser.net = Answer(torch.ones_like(x_t).bfloat16())
    half = denoiser(x_t, t)
    denoiser.net = Answer(torch.ones_like(x_t))  # one is exact in bf16: all the rest must happen in fp32
    assert half.dtype == torch.float32
    assert torch.equal(half, denoiser(x_t, t))


class Layers(nn.Sequential):
    """Eight layers that take no notice of the time."""

    def __init__(self):
        super().__init__(*[nn.Linear(40, 40, bias=False) for _ in range(8)])

    def forward(self, x_t, t, cond=None):
        return super().forward(x_t)


def test_a_pass_in_bf16_keeps_no_second_set_of_weights(schedules):
    """Each layer's are cast when its turn comes, and freed."""
    denoiser = X0Denoiser(Layers(), schedules["edm"])
    denoiser.precision = torch.bfloat16
    with torch.no_grad(), Ledger() as ledger:
        denoiser(torch.randn(2, 40), torch.ones(2))
    one = 40 * 40 * 2
    assert one < ledger.peak["activations"] < 2 * one


def test_exact_mu_is_tweedies(schedule, mixture, every_time, rng):
    """mu = (x_t + sigma^2 score) / alpha, the score by autograd, wherever alpha is not 0."""
    exact = mixture(schedule)
    t = every_time(schedule).double()
    t = t[schedule.alpha(t) > 0]
    x_t = diffused(exact, t, rng, torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(exact.log_prob(x_t, t).sum(), x_t)
    tweedie = (x_t + expand(schedule.sigma(t), x_t) ** 2 * score) / expand(schedule.alpha(t), x_t)
    assert error(tweedie, exact(x_t, t)).max() < 1e-9


def test_exact_density_is_the_sum_of_its_components(schedules, mixture, rng):
    exact = mixture(schedules["vp"])
    t = torch.full((5,), 400.0).double()
    x_t = diffused(exact, t, rng, torch.float64)
    alpha, sigma = schedules["vp"].alpha(t)[0], schedules["vp"].sigma(t)[0]
    density = 0
    for mean, std, weight in zip(exact.means, exact.stds, exact.weights, strict=True):
        normal = torch.distributions.Normal(alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt())
        density = density + weight * normal.log_prob(x_t).flatten(1).sum(1).exp()
    torch.testing.assert_close(exact.log_prob(x_t, t), density.log(), rtol=1e-12, atol=0)


def test_exact_mu_without_a_signal_is_the_mixtures_mean(schedules, mixture, rng):
    exact = mixture(schedules["flow"])
    x_t = torch.randn(3, 2, 3, 5, generator=rng)
    mean = torch.einsum("k,kchw->chw", exact.weights, exact.means).float()
    torch.testing.assert_close(exact(x_t, torch.ones(3)), mean.expand(3, -1, -1, -1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact(x_t, torch.full((3,), 1 - 1e-6)), exact(x_t, torch.ones(3)), rtol=0, atol=1e-4)


def test_exact_mu_at_sigma_80_in_fp32(schedules, mixture, rng):
    exact = mixture(schedules["edm"])
    x_t = 80 * torch.randn(64, 2, 3, 5, generator=rng)
    t = torch.full((64,), 80.0)
    assert error(exact(x_t, t), exact(x_t.double(), t.double())).max() < 2e-7


def test_mixture_of_flat_vectors_is_that_of_images(schedule, mixture, every_time, rng):
    exact = mixture(schedule)
    flat = GaussianMixture(exact.means.flatten(1), schedule, stds=exact.stds, weights=exact.weights)
    t = every_time(schedule)[::50]
    x_t = diffused(exact, t, rng, torch.float32)
    assert torch.equal(flat(x_t.flatten(1), t), exact(x_t, t).flatten(1))


def test_conditions_choose_components(schedule, mixture, labels, every_time, rng):
    """A class of one component has that Gaussian's mean; a row of zeros has no class; a class of two has both."""
    exact = mixture(schedule)
    t = every_time(schedule)[::100]
    x_t = diffused(exact, t, rng, torch.float64)
    for label, components in ((0, [0, 3]), (1, [1]), (2, [2])):
        part = GaussianMixture(
            exact.means[components], schedule, stds=exact.stds[components], weights=exact.weights[components]
        )
        cond = labels([label] * len(t), 3)
        torch.testing.assert_close(exact(x_t, t, cond), part(x_t, t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(exact.log_prob(x_t, t, cond), part.log_prob(x_t, t), rtol=1e-12, atol=1e-12)
        assert torch.equal(exact(x_t, t, cond.null()), exact(x_t, t))


def test_samples_have_the_mixtures_weights_means_and_stds(rng, labels):
    exact = GaussianMixture(
        torch.tensor([[-4.0, 0.0], [4.0, 1.0]]),
        ring().schedule,
        stds=torch.tensor([0.1, 0.2]),
        weights=torch.tensor([1.0, 3.0]),
        classes=torch.tensor([0, 1]),
    )
    x = exact.sample(40_000, rng)
    right = x[:, 0] > 0
    assert right.double().mean().item() == pytest.approx(0.75, abs=0.01)
    for side, mean, std in ((x[~right], [-4, 0], 0.1), (x[right], [4, 1], 0.2)):
        assert side.mean(0).tolist() == pytest.approx(mean, abs=0.01)
        assert side.std(0).tolist() == pytest.approx([std, std], rel=0.03)
    assert (exact.sample(99, rng, cond=labels([0] * 99, 2))[:, 0] < 0).all()


def test_known_shapes():
    torch.testing.assert_close(ring(4).means[1], torch.tensor([0.0, 0.8], dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(two_modes().means.float(), torch.tensor([[-0.6, 0.0], [0.6, 0.0]]))


@pytest.mark.parametrize(
    "bad",
    [
        {"stds": 0.0},
        {"weights": torch.tensor([1.0, -1.0])},
        {"weights": torch.ones(3)},
        {"classes": torch.tensor([0, 2])},
        {"classes": torch.tensor([0])},
    ],
)
def test_bad_mixtures_raise(schedules, bad):
    with pytest.raises(ValueError, match="expected"):
        GaussianMixture(torch.zeros(2, 3), schedules["edm"], **bad)


def test_conditions_that_fit_no_class_raise(schedules, mixture, labels):
    x, t = torch.zeros(2, 2, 3, 5), torch.ones(2)
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        mixture(schedules["edm"])(x, t, labels([0, 1], 4))
    with pytest.raises(ValueError, match="a mixture with classes"):
        GaussianMixture(torch.zeros(1, 30), schedules["edm"])(x, t, labels([0, 1], 3))


@pytest.fixture
def perfect(schedules, mixture):
    exact = mixture(schedules["edm"])
    return EDMDenoiser(InverseEDM(exact, None), exact.schedule)


def test_guidance_of_one_is_no_guidance(perfect, labels, rng):
    t = perfect.schedule.sample_t(5, rng=rng)
    x_t, cond = torch.randn(5, 2, 3, 5, generator=rng), labels([0, 1, 2, 0, 1], 3)
    assert torch.equal(GuidedDenoiser(perfect, 1)(x_t, t, cond), perfect(x_t, t, cond))
    assert torch.equal(GuidedDenoiser(perfect, 1)(x_t, t), perfect(x_t, t))
    perfect.net.asked = 0
    GuidedDenoiser(perfect, 1.0)(x_t, t, cond)
    assert perfect.net.asked == 1


@pytest.mark.parametrize("scale", [0.0, 3.0, 8.0])
def test_guidance_is_its_formula_in_one_call(perfect, labels, rng, scale):
    t = perfect.schedule.sample_t(5, rng=rng)
    x_t, cond = torch.randn(5, 2, 3, 5, generator=rng), labels([0, 1, 2, 0, 1], 3)
    mu_null, mu_cond = perfect(x_t, t), perfect(x_t, t, cond)
    assert not torch.allclose(mu_null, mu_cond, atol=0.01)
    perfect.net.asked = 0
    guided = GuidedDenoiser(perfect, scale)(x_t, t, cond)
    assert perfect.net.asked == 1
    torch.testing.assert_close(guided, mu_null + scale * (mu_cond - mu_null), rtol=1e-5, atol=1e-5)


def test_guidance_trains_as_its_denoiser(perfect):
    t = torch.tensor([0.01, 1.0, 80.0])
    assert torch.equal(GuidedDenoiser(perfect, 3).weight(t), perfect.weight(t))


def test_guidance_without_a_condition_raises(perfect):
    with pytest.raises(ValueError, match=r"guidance 3\.0 without a condition"):
        GuidedDenoiser(perfect, 3.0)(torch.zeros(2, 2, 3, 5), torch.ones(2))


def test_a_denoiser_of_ones_own_is_a_mean_and_a_weight(schedules, mixture, rng):
    """The one extension point: half the exact mean, by a class of two lines."""

    class Half(Denoiser):
        def mean(self, f, x_t, alpha, sigma):
            return f / 2

    exact = mixture(schedules["edm"])
    x_t, t = torch.randn(3, 2, 3, 5, generator=rng), torch.ones(3)
    assert torch.equal(Half(exact, exact.schedule)(x_t, t), exact(x_t, t) / 2)


def test_a_guided_mean_is_no_longer_than_the_cap(schedule, mixture, labels, rng):
    """Of each sample min(1, cap |mu_cond| / |mu|) mu, in closed form; a large cap changes nothing."""
    perfect, x_t = mixture(schedule), torch.randn(4, 2, 3, 5, generator=rng)
    t, cond = schedule.sample_t(4, rng=rng), labels([0, 1, 2, 0], 3)
    mu_null, mu_cond = perfect(x_t, t, cond.null()), perfect(x_t, t, cond)
    for cap in (1.0, 1.5):
        guided = mu_null + 9 * (mu_cond - mu_null)
        for i in range(4):
            guided[i] *= min(1, (cap * mu_cond[i].norm() / guided[i].norm()).item())
        capped = GuidedDenoiser(perfect, 9, norm_cap=cap)(x_t, t, cond)
        torch.testing.assert_close(capped, guided, rtol=1e-4, atol=1e-5)
    free = GuidedDenoiser(perfect, 9)(x_t, t, cond)
    assert torch.equal(GuidedDenoiser(perfect, 9, norm_cap=1e6)(x_t, t, cond), free)


def test_each_sample_can_have_a_scale_of_its_own(schedule, mixture, labels, rng):
    perfect, x_t = mixture(schedule), torch.randn(3, 2, 3, 5, generator=rng)
    t, cond, scales = schedule.sample_t(3, rng=rng), labels([0, 1, 2], 3), torch.tensor([1.0, 3.0, 8.0])
    whole, calls = GuidedDenoiser(perfect, 2), []
    whole.register_forward_hook(lambda *_: calls.append(1))
    guided = whole.with_scales(scales)(x_t, t, cond)
    assert (calls, whole.scales) == ([1], None)  # what watches the one sees the other
    for i, scale in enumerate(scales.tolist()):
        rows = slice(i, i + 1)
        one = GuidedDenoiser(perfect, scale)(x_t[rows], t[rows], cond[rows])
        torch.testing.assert_close(guided[rows], one, rtol=1e-5, atol=1e-5)
