"""Solvers against closed forms, their papers' algorithms written plainly, and their orders of convergence."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.core.solvers import SOLVERS, ddim, dpmpp, evaluations, heun, pndm
from dmdistill.models.gaussian_mixture import GaussianMixture

BINS = 2**14  # enough for the steps below to divide, so that rounding to bins does not hide an order


def smooth_vp():
    """sigma starts linearly in t."""
    t = (torch.arange(BINS, dtype=torch.float64) + 1) / BINS
    return VP(torch.cos(0.98 * math.pi / 2 * t) ** 2)


def linear_vp():
    """DDPM's schedule in finer steps."""
    return VP.linear_betas(BINS, 0.1 / BINS, 20 / BINS)


FINE = {"edm": EDM(), "flow": Flow(), "smooth": smooth_vp(), "linear": linear_vp()}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(scope="module")
def limit():
    """The image that solvers tend to on a path, of the noise they all start from."""
    return cache(lambda exact, schedule: heun(exact(FINE[schedule]), noise(3, 2, 3, 5), steps=2048))


def order(solver, exact, target):
    """Slope of log error against log steps, 32 to 256 steps."""
    steps = [32, 64, 128, 256]
    errors = [(solver(exact, noise(3, 2, 3, 5), steps=n) - target).square().mean().sqrt() for n in steps]
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.stack(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return -(x @ y / (x @ x)).item()


@pytest.mark.parametrize(
    ("solver", "schedule", "low", "high"),
    [
        ("heun", "edm", 1.8, 2.3),
        ("heun", "flow", 1.8, 2.3),
        ("heun", "smooth", 1.8, 2.3),
        ("dpmpp", "edm", 1.8, 2.3),
        ("dpmpp", "flow", 1.8, 2.3),
        ("dpmpp", "smooth", 1.8, 2.3),
        ("dpmpp", "linear", 1.4, 1.8),  # its first steps are far apart in ln(alpha/sigma), on which it extrapolates
        ("ddim", "edm", 0.9, 1.1),
        ("ddim", "flow", 0.9, 1.1),
        ("ddim", "smooth", 0.9, 1.1),
        ("ddim", "linear", 0.9, 1.1),
        ("pndm", "edm", 2.0, 2.5),
        ("pndm", "smooth", 2.0, 2.5),
        ("heun", "linear", 1.8, 2.3),  # sigma starts as sqrt(t) there: equal steps to the image would give 1.5
    ],
)
def test_order_of_convergence(mixture, limit, solver, schedule, low, high):
    assert low < order(SOLVERS[solver], mixture(FINE[schedule]), limit(mixture, schedule)) < high


@pytest.mark.parametrize("schedule", FINE)
def test_all_solvers_make_the_same_image_of_the_same_noise(mixture, limit, schedule):
    exact, z, target = mixture(FINE[schedule]), noise(3, 2, 3, 5), limit(mixture, schedule)
    assert target.std() > 0.3  # images, not noise and not a mean
    for name, steps, bound in (("heun", 512, 1e-4), ("dpmpp", 2048, 2e-3), ("pndm", 512, 1e-4), ("ddim", 2048, 3e-3)):
        if (name, schedule) != ("pndm", "flow"):
            assert (SOLVERS[name](exact, z, steps=steps) - target).abs().max() < bound


@pytest.mark.parametrize(("solver", "schedule"), [(s, p) for s in SOLVERS for p in FINE if (s, p) != ("pndm", "flow")])
def test_one_gaussian_in_closed_form(solver, schedule):
    """(x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) is constant along the flow, so the image is m + s scaled noise."""
    line, (m, s), z = FINE[schedule], (0.3, 0.4), noise(7, 2, 3, 5)
    exact = GaussianMixture(torch.full((1, 2, 3, 5), m), line, stds=s)
    m = exact.means[0]
    t = torch.tensor([line.t_max], dtype=torch.float64)
    alpha, sigma = line.alpha(t), line.sigma(t)
    target = m + s * (line.prior_std * z - alpha * m) / ((alpha * s) ** 2 + sigma**2).sqrt()
    image = SOLVERS[solver](exact, z, steps=1024)
    bound = {"ddim": 1e-2, "dpmpp": 1e-3}.get(solver, 2e-5)
    assert (image - target).abs().max() < bound


SCALED_LINEAR = VP((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0))  # Stable Diffusion's


@pytest.mark.parametrize(
    ("solver", "schedule", "kept"),
    [  # of the std of detail of .02, .05 and .1, at 50 steps; in brackets what ending at equal steps would keep
        ("pndm", SCALED_LINEAR, (0.95, 1.09, 1.02)),  # (0.19, 0.43, 0.71)
        ("pndm", VP.linear_betas(), (1.05, 0.97, 1.01)),  # (0.36, 0.72, 0.93)
        ("dpmpp", SCALED_LINEAR, (0.53, 0.78, 0.97)),
        ("dpmpp", VP.linear_betas(), (0.71, 0.96, 1.14)),
        ("dpmpp", Flow(shift=3.0), (0.71, 1.15, 1.33)),
        ("ddim", SCALED_LINEAR, (0.51, 0.66, 0.74)),  # (0.15, 0.35, 0.58)
        ("ddim", VP.linear_betas(), (0.58, 0.65, 0.78)),  # (0.25, 0.53, 0.74)
        ("ddim", Flow(shift=3.0), (0.42, 0.62, 0.78)),  # (0.31, 0.60, 0.78); Euler's method
        ("heun", SCALED_LINEAR, (0.72, 1.11, 1.06)),  # (0.15, 0.35, 0.60)
        ("heun", VP.linear_betas(), (1.53, 1.17, 1.04)),  # (0.26, 0.56, 0.81)
        ("heun", Flow(shift=3.0), (1.73, 1.13, 1.03)),  # (0.31, 0.65, 0.87)
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_fine_detail_is_kept(solver, schedule, kept):
    """The std of a Gaussian's images over that of the exact flow, whose image of z is std x / std(x)."""
    z = torch.ones(1, 1, dtype=torch.float64)
    last = torch.tensor([schedule.t_max], dtype=torch.float64)
    for std, expected in zip((0.02, 0.05, 0.1), kept, strict=True):
        exact = GaussianMixture(torch.zeros(1, 1), schedule, stds=std)
        scale = std / ((schedule.alpha(last) * std) ** 2 + schedule.sigma(last) ** 2).sqrt()
        assert (SOLVERS[solver](exact, z, steps=50) / scale).item() == pytest.approx(expected, abs=0.006)


def test_heun_is_algorithm_1_of_edm(mixture):
    """Karras et al. (2022), step by step."""
    exact, z = mixture(EDM()), noise(3, 2, 3, 5)
    denoise = lambda x, sigma: exact(x, torch.full((3,), sigma, dtype=torch.float64))  # noqa: E731
    low, high, n = 0.002 ** (1 / 7), 80 ** (1 / 7), 18
    t = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)] + [0.0]
    x = t[0] * z
    for i in range(n):
        d = (x - denoise(x, t[i])) / t[i]
        x_next = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_next = (x_next - denoise(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - t[i]) * (d + d_next) / 2
        x = x_next
    torch.testing.assert_close(heun(exact, z, steps=18), x, rtol=0, atol=1e-10)


def test_dpmpp_is_algorithm_2_of_its_paper(schedules, mixture):
    """Lu et al. (2022, DPM-Solver++), step by step; the last step, whose h is infinite, is of first order."""
    schedule, z = schedules["vp"], noise(3, 2, 3, 5)
    exact, abar = mixture(schedule), [1.0, *(schedules["vp"].alpha(torch.arange(1000).double()) ** 2).tolist()]
    t = [*range(999, -1, -111)]
    alpha = [math.sqrt(abar[now + 1]) for now in t]
    sigma = [math.sqrt(1 - abar[now + 1]) for now in t]
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    predict = lambda x, i: exact(x, torch.full((3,), t[i]).double())  # noqa: E731
    x, buffer = z, []
    for i in range(1, len(t)):
        buffer.append(predict(x, i - 1))
        h, data = lam[i] - lam[i - 1], buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            data = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h) - 1) * data
    torch.testing.assert_close(dpmpp(exact, z, steps=10), predict(x, len(t) - 1), rtol=0, atol=1e-10)


def test_ddim_is_eq_12_of_ddim(schedules, mixture):
    """Song et al. (2021), sigma_t = 0, from the noise prediction."""
    schedule, z = schedules["vp"], noise(3, 2, 3, 5)
    exact, abar = mixture(schedule), [1.0, *(schedules["vp"].alpha(torch.arange(1000).double()) ** 2).tolist()]
    x, times = z, [*range(999, -1, -111), -1]
    for now, after in pairwise(times):
        a, b = abar[now + 1], abar[after + 1]
        eps = (x - math.sqrt(a) * exact(x, torch.full((3,), now).double())) / math.sqrt(1 - a)
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps
    torch.testing.assert_close(ddim(exact, z, steps=10), x, rtol=0, atol=1e-10)


def test_pndm_is_its_paper(schedules, mixture):
    """Liu et al. (2022): the transfer of Eq. 11, the linear multi-step of Eq. 12, and a trapezium first."""
    schedule, z = schedules["vp"], noise(3, 2, 3, 5)
    exact, abar = mixture(schedule), [1.0, *(schedules["vp"].alpha(torch.arange(1000).double()) ** 2).tolist()]

    def noise_of(x, now):
        a = abar[now + 1]
        return (x - math.sqrt(a) * exact(x, torch.full((3,), now).double())) / math.sqrt(1 - a)

    def transfer(x, eps, now, after):
        a, b = abar[now + 1], abar[after + 1]
        down = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
        return math.sqrt(b) / math.sqrt(a) * x - (b - a) / down * eps

    x, times, e = z, [*range(999, -1, -111), -1], []
    for i, (now, after) in enumerate(pairwise(times)):
        e.insert(0, noise_of(x, now))
        if i == 0:
            eps = (e[0] + noise_of(transfer(x, e[0], now, after), after)) / 2
        elif i == 1:
            eps = (3 * e[0] - e[1]) / 2
        elif i == 2:
            eps = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            eps = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = transfer(x, eps, now, after)
    torch.testing.assert_close(pndm(exact, z, steps=10), x, rtol=0, atol=1e-10)


class Counted(Denoiser):
    """Counts the calls and keeps the times and the condition it was given."""

    def __init__(self, exact):
        super().__init__(nn.Identity(), exact.schedule)
        self.exact, self.times, self.conds = exact, [], set()

    def forward(self, x_t, t, cond=None):
        assert t.shape == x_t.shape[:1]
        self.times.append(t[0].item())
        self.conds.add(cond)
        return self.exact(x_t, t, cond)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_evaluations_are_the_calls(schedules, mixture, labels, solver, steps):
    counted, cond = Counted(mixture(schedules["vp"])), labels([0, 1, 2], 3)
    SOLVERS[solver](counted, noise(3, 2, 3, 5), cond, steps=steps)
    assert len(counted.times) == evaluations(solver, steps)
    assert counted.times[0] == schedules["vp"].t_max
    assert min(counted.times) >= 0  # never asked at the clean image
    assert {id(c) for c in counted.conds} == {id(cond)}


def test_one_step_is_the_generator_at_its_start(schedule, mixture):
    """With one step every solver answers mu(prior_std z, last), which is what G is before training."""
    exact, z = mixture(schedule), noise(3, 2, 3, 5)
    for name, solver in SOLVERS.items():
        if not (name == "pndm" and isinstance(schedule, Flow)):
            torch.testing.assert_close(solver(exact, z, steps=1), Generator(exact)(z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_follow_the_condition_and_build_no_graph(schedules, solver, labels):
    schedule = schedules["edm"]
    exact = GaussianMixture(torch.tensor([[-0.5, 0.0], [0.5, 0.0]]), schedule, stds=0.1, classes=torch.tensor([0, 1]))
    images = SOLVERS[solver](exact, noise(64, 2).requires_grad_(), labels([1] * 64, 2), steps=18)
    assert not images.requires_grad
    assert images.mean(0).tolist() == pytest.approx([0.5, 0.0], abs=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fp32_images_are_the_fp64_ones(schedules, mixture, solver):
    for name in ("edm", "vp"):
        exact, z = mixture(schedules[name]), noise(3, 2, 3, 5).float()
        single = SOLVERS[solver](exact, z, steps=18)
        double = SOLVERS[solver](exact, z.double(), steps=18)
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 5e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_steps_raise(schedules, mixture, solver):
    with pytest.raises(ValueError, match="expected at least 1"):
        SOLVERS[solver](mixture(schedules["edm"]), noise(3, 2, 3, 5), steps=0)


def test_pndm_refuses_a_path_without_a_signal(schedules, mixture):
    with pytest.raises(ValueError, match="use heun"):
        pndm(mixture(schedules["flow"]), noise(3, 2, 3, 5), steps=10)
