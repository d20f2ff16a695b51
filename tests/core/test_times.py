"""Distributions of times, and the times of few-step generators."""

import pytest
import torch

from dmdistill.core.schedules import EDM, VP, Flow, shift_times
from dmdistill.core.times import ALL_TIMES, EDM_TIMES, MATCHING_TIMES, SID_TIMES, LogNormalTimes, UniformTimes


def test_ratios_and_times_are_inverse(schedule, every_time):
    """Of all times but the last, where a flow has no image left."""
    t = every_time(schedule)[:-2]
    ratio = schedule.sigma(t.double()) / schedule.alpha(t.double())
    torch.testing.assert_close(schedule.time_at_ratio(ratio), t, rtol=1e-6, atol=0)
    assert schedule.time_at_ratio(ratio).dtype == torch.float32


def test_the_time_of_a_discrete_schedule_is_the_nearest():
    """In ln(sigma/alpha); ratios beyond both ends have the first time and the last."""
    vp = VP.linear_betas()
    t = torch.arange(1000).double()
    logs = (vp.sigma(t) / vp.alpha(t)).log()
    wanted = torch.linspace(logs[0] - 1, logs[-1] + 1, 777, dtype=torch.float64)
    nearest = (wanted[:, None] - logs).abs().argmin(1)
    assert torch.equal(vp.time_at_ratio(wanted.exp()), nearest.float())


def test_log_normal_times_are_those_of_edm(schedule):
    """The logarithm of sigma/alpha is normal, of mean -1.2 and deviation 1.2."""
    t = EDM_TIMES(schedule, 20_000, torch.Generator().manual_seed(0)).double()
    assert t.dtype == torch.float64
    logs = (schedule.sigma(t) / schedule.alpha(t)).log()
    quantiles = logs.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double())
    expected = -1.2 + 1.2 * torch.tensor([-1.2816, -0.6745, 0.0, 0.6745, 1.2816]).double()
    assert (quantiles - expected).abs().max() < 0.05
    again = LogNormalTimes(-1.2, 1.2)(schedule, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(again.double(), t)


def test_a_flows_log_normal_times_are_logit_normal():
    t = LogNormalTimes(0.3, 0.7)(Flow(), 20_000, torch.Generator().manual_seed(0)).double()
    assert abs(t.logit().mean() - 0.3) < 0.02
    assert abs(t.logit().std() - 0.7) < 0.02


@pytest.mark.parametrize(
    ("times", "first", "last"),
    [(ALL_TIMES, 0, 999), (MATCHING_TIMES, 20, 980), (SID_TIMES, 0, 800), (UniformTimes(0.5, 0.6), 500, 600)],
)
def test_uniform_times_reach_both_ends(schedule, times, first, last):
    t = times(schedule, 40_000, torch.Generator().manual_seed(0))
    ends = schedule.time(torch.tensor([first, last]))
    assert torch.equal(torch.stack([t.min(), t.max()]), ends)


def test_a_students_times_are_those_of_dmd2():
    """On Stable Diffusion's schedule and on EDM's Karras grid; a flow's are its solver's, shifted once."""
    assert VP.linear_betas().student_times(4) == (999, 749, 499, 249)
    assert VP.linear_betas().student_times(1) == (999,)
    edm, index = EDM(), torch.tensor([749, 499, 249])
    assert edm.student_times(4) == (80.0, *edm.time(index).tolist())
    assert Flow().student_times(4) == (1.0, 0.75, 0.5, 0.25)
    assert Flow(shift=3.0).student_times(4) == pytest.approx((1.0, 0.9, 0.75, 0.5))


def test_a_shift_moves_a_flows_times_towards_noise_after_they_are_drawn():
    """By shift t / (1 + (shift - 1) t), with the same draws; both ends of the range are shifted too."""
    plain, shifted = (
        UniformTimes(0.004, 1.0, shift)(Flow(), 40_000, torch.Generator().manual_seed(0)) for shift in (1.0, 5.0)
    )
    torch.testing.assert_close(shifted, 5 * plain / (1 + 4 * plain))
    assert (shifted.min().item(), shifted.max().item()) == (pytest.approx(0.0245, abs=1e-4), 1.0)
    assert shifted.median().item() == pytest.approx(5 / 6, abs=0.01)
    torch.testing.assert_close(shift_times(shifted.double(), 1 / 5), plain.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", [EDM(), VP.linear_betas()], ids=["edm", "vp"])
def test_times_of_no_flow_have_no_shift(schedule):
    with pytest.raises(ValueError, match=f"{type(schedule).__name__} with shift 3.*flow"):
        UniformTimes(shift=3.0)(schedule, 2, torch.Generator())


@pytest.mark.parametrize(("shift", "t", "high"), [(1.0, 0.5, 0.5), (3.0, 0.9, 0.75), (3.0, 0.75, 0.5)])
def test_times_below_a_students_are_bounded_before_the_shift(shift, t, high):
    below = UniformTimes(0.02, 0.98, shift).below(Flow(), t)
    assert (below.low, below.high, below.shift) == (0.02, pytest.approx(high, abs=1e-9), shift)
    drawn = below(Flow(), 40_000, torch.Generator().manual_seed(0))
    assert t - 0.002 < drawn.max() < t + 0.002
    assert UniformTimes(0.6, 0.98).below(Flow(), 0.5) == UniformTimes(0.0, 0.5)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    for schedule in (EDM(), VP.linear_betas()):
        with pytest.raises(ValueError, match=str(steps)):
            schedule.student_times(steps)


def test_a_times_fraction_bounds_uniform_times(schedule):
    """Times below the fraction of a student's time are below that time, up to one bin, and reach it."""
    for t in schedule.student_times(4):
        drawn = UniformTimes(0, schedule.fraction(t))(schedule, 40_000, torch.Generator().manual_seed(0))
        below = schedule.time(torch.arange(1000))
        assert drawn.max() >= below[below <= t * (1 + 1e-6)].max() * (1 - 1e-6)
        assert (drawn > t).float().mean() < 0.01
    assert schedule.fraction(schedule.t_max) == 1
