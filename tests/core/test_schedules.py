"""Paths against their formulas, written plainly."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from dmdistill.core.schedules import EDM, VP, Flow, expand

SHAPE = (7, 2, 3, 5)  # B != C != H != W


@pytest.mark.parametrize(("index", "sigma"), [(20, 0.0032), (500, 2.53), (980, 72.05)])
def test_edm_bins_are_the_papers(index, sigma):
    assert EDM().time(torch.tensor([index])).item() == pytest.approx(sigma, rel=0.01)


def test_edm_bins_span_the_range():
    first, t_max = EDM().time(torch.tensor([0, 999])).tolist()
    assert (first, t_max) == (pytest.approx(0.002, rel=1e-6), pytest.approx(80, rel=1e-6))


def test_edm_grid_is_karras():
    """Eq. 5 of Karras et al. (2022), one sigma at a time."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)] + [0]
    assert EDM().solver_times(18).tolist() == pytest.approx(expected, rel=1e-12)


def test_vp_against_a_plain_product(schedules):
    abar, expected = 1.0, []
    for i in range(1000):
        abar *= 1 - (1e-4 + i / 999 * (0.02 - 1e-4))
        expected.append(abar)
    t = torch.arange(1000, dtype=torch.float64)
    assert (schedules["vp"].alpha(t) ** 2).tolist() == pytest.approx(expected, rel=1e-10)
    assert (schedules["vp"].alpha(t) ** 2 + schedules["vp"].sigma(t) ** 2).tolist() == pytest.approx(
        [1] * 1000, abs=1e-12
    )
    assert math.sqrt(expected[-1]) == pytest.approx(0.00635, rel=0.01)  # what a teacher's error is divided by at T-1


def test_vp_survives_copies_and_pickles(schedules):
    t = torch.arange(1000.0)
    for twin in (copy.deepcopy(schedules["vp"]), pickle.loads(pickle.dumps(schedules["vp"]))):
        assert torch.equal(twin.alpha(t), schedules["vp"].alpha(t))


def test_flow_is_a_straight_line(schedules):
    t = torch.tensor([0.25, 1.0])
    assert schedules["flow"].alpha(t).tolist() == [0.75, 0.0]
    assert schedules["flow"].sigma(t).tolist() == [0.25, 1.0]


def test_flow_shift_moves_the_grid_towards_noise():
    even = [1, 0.667, 0.334, 0.001]
    assert Flow(shift=3.0).solver_times(4).tolist() == pytest.approx([*(3 * t / (1 + 2 * t) for t in even), 0])
    assert Flow(shift=3.0).student_times(4) == pytest.approx([1, 0.9, 0.75, 0.5])


def test_the_times_of_four_steps_are_those_of_the_docs():
    """docs/methods.md has them for each schedule: equal parts of the bins, which for EDM are not those of sigma."""
    assert VP.linear_betas().student_times(4) == (999, 749, 499, 249)
    assert EDM().student_times(4) == pytest.approx((80, 17.5, 2.5, 0.168), rel=2e-3)
    assert Flow().student_times(4) == (1, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("schedule", [EDM(), VP.linear_betas(), Flow(shift=3.0)], ids=["edm", "vp", "flow"])
def test_the_last_step_of_a_solver_starts_from_the_least_noise(schedule):
    for steps in (2, 10, 50):
        sigma = schedule.sigma(schedule.solver_times(steps)[-2])
        assert sigma == pytest.approx(schedule.sigma(schedule.time(torch.tensor([0]))).item(), rel=2.1)


def test_the_grid_of_a_vp_schedule_is_evenly_spaced_as_in_numpy():
    """diffusers' timestep_spacing "linspace", whose last step leads to the clean image."""
    schedule = VP.linear_betas()
    for steps in range(2, 1001):
        expected = [*np.linspace(0, 999, steps).round()[::-1], -1]
        assert schedule.solver_times(steps).tolist() == expected


def test_times_start_at_last_fall_and_end_clean(schedule):
    for steps in (1, 2, 18, 50, 333, 999, 1000):
        t = schedule.solver_times(steps)
        assert len(t) == steps + 1
        assert t[0].item() == pytest.approx(schedule.t_max, rel=1e-12)
        assert schedule.sigma(t)[-1] == 0
        assert schedule.alpha(t)[-1] == 1
        assert (t.diff() < 0).all()
        assert (schedule.sigma(t).diff() < 0).all()


def test_noise_to_signal_rises_with_the_bin(schedule):
    t = schedule.time(torch.arange(schedule.bins)).double()
    assert ((schedule.sigma(t) / schedule.alpha(t).clamp(min=1e-9)).diff() > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.02, 0.98), (0.5, 0.51), (0.9999, 1.0)])
def test_sample_t_is_uniform_over_the_bins_and_inclusive(schedule, rng, low, high):
    grid = schedule.time(torch.arange(schedule.bins))
    first, t_max = min(round(low * 1000), 999), min(round(high * 1000), 999)
    t = schedule.sample_t(100_000, low, high, rng=rng)
    index = torch.searchsorted(grid, t)
    assert torch.equal(grid[index], t)
    assert index.unique().tolist() == list(range(first, t_max + 1))
    counts = index.bincount(minlength=1000)[first : t_max + 1].double()
    expected, free = len(t) / len(counts), len(counts) - 1
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - free) <= 5 * math.sqrt(2 * free)


def test_sample_t_is_the_rngs(schedule):
    draws = [schedule.sample_t(9, rng=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_diffuse_has_the_mean_and_variance_of_eq_3(schedule, rng):
    t = schedule.sample_t(SHAPE[0], rng=rng).double()
    x = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    draws = torch.stack(
        [schedule.diffuse(x, torch.randn(SHAPE, generator=rng, dtype=torch.float64), t) for _ in range(4000)]
    )
    for i in range(SHAPE[0]):
        alpha, sigma = schedule.alpha(t)[i], schedule.sigma(t)[i]
        error = (draws[:, i].mean(0) - alpha * x[i]) / sigma
        assert error.abs().max() < 5 / math.sqrt(4000)
        spread = ((draws[:, i] - alpha * x[i]) / sigma).var()
        assert spread.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (4000 * 30)))


def test_expand_gives_each_sample_its_own_time():
    x, t = torch.ones(SHAPE), torch.arange(7.0)
    assert torch.equal((expand(t, x) * x)[:, 1, 2, 4], t)
    assert expand(t, x[:, 0, 0, 0]).shape == (7,)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (7, 1)])
def test_expand_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \(7,\): one per sample"):
        expand(torch.ones(shape), torch.ones(SHAPE))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1), (0, 1.1), (0.5, 0.5), (0.98, 0.02), (float("nan"), 1)])
def test_bad_time_ranges_say_what_is_allowed(schedule, rng, low, high):
    with pytest.raises(ValueError, match=r"expected 0 <= low < high <= 1"):
        schedule.sample_t(3, low, high, rng=rng)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: EDM(sigma_min=80, sigma_max=0.002), "expected 0 < sigma_min < sigma_max"),
        (lambda: EDM(sigma_min=0), "expected 0 < sigma_min < sigma_max"),
        (lambda: EDM(bins=1), "expected bins >= 2"),
        (lambda: VP(torch.tensor([0.5, 0.6])), "falling"),
        (lambda: VP(torch.tensor([1.0, 0.6])), "falling"),
        (lambda: VP(torch.tensor([0.5, -0.1])), "falling"),
        (lambda: VP(torch.ones(2, 3)), "falling"),
        (lambda: VP(torch.ones(0)), "falling"),
        (lambda: Flow(shift=0), "expected shift > 0"),
        (lambda: VP.linear_betas(10).solver_times(11), r"expected 1 \.\.\. 10"),
    ],
)
def test_bad_paths_say_what_is_allowed(build, match):
    with pytest.raises(ValueError, match=match):
        build()
