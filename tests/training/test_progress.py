"""Progress: what a terminal of 80 columns and a log file show, with a clock of the test's own."""

import io
import re

import pytest
from rich.console import Console

from dmdistill.training.progress import Estimate, progress_bar, progress_line, track_rows

METRICS = {"loss_kl": 0.1591, "loss_reg": 0.1157, "loss_fake": 0.469, "loss_gan": 0.6931}


class Clock:
    """Seconds that the test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(name, total, advances, clock, *, terminal, start=0):
    """What is printed while time passes: pairs of seconds and arguments of an advance."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80, height=24, color_system=None)
    with progress_bar(name, total, start=start, console=console, clock=clock) as advance:
        for seconds, *arguments in advances:
            clock.now += seconds
            advance(*arguments)
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", output.getvalue())) if line]


def test_a_terminal_of_80_columns_has_step_time_and_eta_in_full(clock):
    lines = shown("distilling", 50000, [(400, 449), (300, 450, METRICS)], clock, terminal=True, start=448)
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].endswith(" distilling 450/50000 0:11:40 ETA 200 days, 17:21:40  loss_kl 0.1591 …")


@pytest.mark.parametrize("seconds", [0.01, 1, 31, 100, 4000])
def test_there_is_an_eta_from_the_first_update_on_however_long_it_takes(seconds, clock):
    estimate = Estimate(100, 10, clock)
    assert estimate.left is None
    for step in range(11, 41):
        clock.now += seconds
        estimate.advance(step)
        assert estimate.left == pytest.approx((100 - step) * seconds)
    clock.now += seconds / 2
    assert estimate.left == pytest.approx(59.5 * seconds)  # it counts down between updates
    assert len(estimate.samples) < 20 or seconds < 10


def test_an_eta_follows_the_speed_of_the_last_minutes(clock):
    """As where distributions are matched after a regression, which is faster."""
    estimate = Estimate(1000, 0, clock)
    for step in range(1, 901):
        clock.now += 1 if step <= 600 else 4
        estimate.advance(step)
    assert estimate.left == pytest.approx(400)


def test_an_eta_knows_of_costlier_steps_to_come(clock):
    """As where the fake score has five updates in a step, after a regression."""
    estimate = Estimate(1000, 0, clock, work=lambda step: step + 3 * max(step - 600, 0))
    for step in range(1, 1001):
        clock.now += 1 if step <= 600 else 4
        estimate.advance(step)
        assert estimate.left == pytest.approx(600 - step + 1600 if step <= 600 else 4 * (1000 - step), abs=1e-6)


@pytest.mark.parametrize("width", [32, 40, 60, 80, 90])
def test_of_a_line_that_is_too_long_figures_are_cut_and_then_the_name(width, clock):
    estimate = Estimate(8000, 0, clock)
    clock.now += 609
    estimate.advance(6000)
    line = progress_line("looking at a/folder/with/a/long/name", estimate, "loss_kl 0.1591", width=width).plain
    assert len(line) <= width
    assert "6000/8000 0:10:09 ETA 0:03:23" in line
    assert line.endswith({80: "  loss_kl 0.1…", 90: "  loss_kl 0.1591"}.get(width, "0:03:23"))


def test_a_log_file_has_a_line_per_tenth_and_one_after_the_first_minute(clock):
    advances = [(50, 1), (50, 2, {"loss": 0.5}), (50, 3), *((50, step) for step in range(4, 41))]
    lines = shown("distilling", 400, advances, clock, terminal=False)
    assert lines == ["distilling 2/400 ETA 5:31:40 loss 0.5", "distilling 40/400 ETA 5:00:00 loss 0.5"]


def test_rows_are_counted_in_place_of_batches(capsys):
    assert list(track_rows([range(3), range(3, 5)], "making pairs")) == [range(3), range(3, 5)]
    assert [line.split(" ETA")[0] for line in capsys.readouterr().out.splitlines()] == [
        "making pairs 3/5",
        "making pairs 5/5",
    ]
