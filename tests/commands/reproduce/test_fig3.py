"""Fig. 3: what the words of its table mean, and that the paper's three outcomes are ours."""

import json

import pytest
import torch
from PIL import Image

from dmdistill.commands.cli import main
from dmdistill.commands.reproduce.fig3 import experiment as figure3
from dmdistill.commands.reproduce.fig3.experiment import (
    FULL_RANGE,
    LOW_NOISE,
    TRIALS,
    ZeroScore,
    initialize,
    merging_sigma,
    mode_coverage,
    train,
)
from dmdistill.core.losses import Estimates, distribution_matching_loss, weight_eq8
from dmdistill.core.schedules import EDM, VP
from dmdistill.models.gaussian_mixture import two_modes


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small only wait for a second core; and one thread adds in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("schedule", [EDM(), VP.linear_betas()], ids=lambda schedule: type(schedule).__name__)
def test_a_zero_fake_score_leaves_the_real_score_only(schedule, rng):
    """Eq. 7's gradient is then -sigma^2/alpha times s_real, here from autograd, under the weight of Eq. 8."""
    real = two_modes(schedule=schedule)
    x = real.sample(9, rng).double().requires_grad_()
    t, eps = schedule.sample_t(9, 0.1, 0.9, rng=rng).double(), torch.randn(9, 2, generator=rng, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(distribution_matching_loss(x, real, ZeroScore(schedule), t, eps) * x.numel(), x)
    x_t = schedule.diffuse(x.detach(), eps, t).requires_grad_()
    (score,) = torch.autograd.grad(real.log_prob(x_t, t).sum(), x_t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    mu_real = real(x_t, t).detach()
    weight = weight_eq8(Estimates(x.detach(), x_t, t, None, mu_real, mu_real, alpha, sigma))
    torch.testing.assert_close(gradient, -weight * sigma**2 / alpha * score, atol=1e-9, rtol=1e-9)


def test_coverage_of_the_density_itself_is_what_it_must_be(rng):
    """Half of the samples on each side, and 1 - exp(-9/2) of them within 3 std; the truncated std is .975 of it."""
    real = two_modes()
    measured = mode_coverage(real.sample(200_000, rng), real)
    assert measured["share left"] == pytest.approx(0.5 * (1 - torch.exp(torch.tensor(-4.5)).item()), abs=0.005)
    assert measured["std left"] == pytest.approx(0.975, abs=0.005)
    assert measured["std of all"] == pytest.approx(((0.6**2 + 2 * 0.1**2) / 2) ** 0.5, abs=0.002)


def test_coverage_of_a_point_and_of_nothing():
    """Two samples in one place, one in the middle, one just beyond 3 std."""
    real = two_modes()
    measured = mode_coverage(torch.tensor([[-0.6, 0.0], [-0.6, 0.0], [0.0, 0.0], [0.6, 0.31]]), real)
    assert measured["share left"] == 0.5
    assert measured["std left"] == 0
    assert (measured["share right"], measured["std right"]) == (0, None)


def run(out, *arguments):
    main(["reproduce", "fig3", "--out", str(out), "--threads", "1", *arguments])
    return json.loads((out / "fig3.json").read_text())


def test_the_command_writes_picture_and_table(tmp_path, monkeypatch, capsys):
    """At two steps; twice the same, bit for bit."""
    monkeypatch.setattr(figure3, "FINAL_SAMPLES", 500)
    monkeypatch.setattr(figure3, "START_STEPS", 2)
    table = run(tmp_path / "a", "--seeds", "2", "--steps", "2")
    printed = capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["fig3.json", "fig3.png"]
    with Image.open(tmp_path / "a" / "fig3.png") as picture:
        assert picture.convert("L").getextrema()[0] < 100 < 250 < picture.convert("L").getextrema()[1]
    assert "not converged: --steps 2 of 1000" in printed
    assert (table["seeds"], table["steps"], len(table["rows"])) == (2, 2, 1 + len(TRIALS))
    for row in table["rows"][1:]:
        assert row["loss"] in printed
        assert len(row["share left"]["values"]) == 2
    assert run(tmp_path / "b", "--seeds", "2", "--steps", "2") == table


def test_one_seed_has_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(figure3, "START_STEPS", 2)
    rows = run(tmp_path, "--seeds", "1", "--steps", "1")["rows"]
    assert {row["std of all"]["std"] for row in rows} == {None}


def test_the_modes_merge_where_the_middle_stops_being_a_valley():
    """The curvature of the diffused log density at the middle of the modes, from autograd, changes its sign there."""
    real = two_modes()
    for factor, sign in ((0.999, 1), (1.001, -1)):
        x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        height = real.log_prob(x, torch.tensor([factor * merging_sigma(real)], dtype=torch.float64)).sum()
        (slope,) = torch.autograd.grad(height, x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[0, 0], x)
        assert curvature[0, 0].sign().item() == sign


def final_coverage(initial, loss, high, steps):
    """Train, and return of every seed the left and right share and the std of all."""
    real = two_modes()
    measured = [mode_coverage(samples, real) for samples in train(initial, loss, high, steps=steps).samples.unbind(1)]
    return torch.tensor([[run["share left"], run["share right"], run["std of all"]] for run in measured]).T


def test_the_papers_three_outcomes_have_begun(rng):
    """At little noise, after a quarter of the steps: a point; one mode and not the other; both."""
    initial = initialize(2, rng)
    left, right, std = final_coverage(initial, "a", LOW_NOISE, 250)
    assert (left > 0.99).all()
    assert (std < 0.03).all()
    left, right, std = final_coverage(initial, "b", LOW_NOISE, 250)
    assert (left > 0.75).all()
    assert (right < 0.05).all()
    assert (std > 0.08).all()
    left, right, std = final_coverage(initial, "c", LOW_NOISE, 250)
    assert (torch.minimum(left, right) > 0.1).all()


@pytest.mark.slow
def test_little_noise_gives_the_papers_three_outcomes(rng):
    initial = initialize(5, rng)
    left, right, std = final_coverage(initial, "a", LOW_NOISE, 1000)
    assert (left == 1).all()
    assert (std < 0.01).all()
    left, right, std = final_coverage(initial, "b", LOW_NOISE, 1000)
    assert (left > 0.85).all()
    assert (right < 0.03).all()
    assert (std > 0.08).all()
    left, right, std = final_coverage(initial, "c", LOW_NOISE, 1000)
    assert (torch.minimum(left, right) > 0.4).all()


@pytest.mark.slow
def test_all_of_the_noise_shows_the_second_mode(rng):
    """Unlike in the paper's picture: both scores find both modes, and the real score only what lies between them."""
    initial = initialize(5, rng)
    left, right, std = final_coverage(initial, "b", FULL_RANGE, 1000)
    assert (torch.minimum(left, right) > 0.35).all()
    left, right, std = final_coverage(initial, "a", FULL_RANGE, 1000)
    assert (torch.maximum(left, right) == 0).all()
    assert (std < 0.15).all()
