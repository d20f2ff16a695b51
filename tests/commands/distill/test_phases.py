"""The phases of a distillation, by the losses in its log."""

import signal

import pytest

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.extended_run import keep_phases
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change
from dmdistill.commands.presets import write_config
from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.signals import TrainingStopped


def test_before_match_from_regression_is_the_only_loss(settings):
    both, regression = settings("both", match_from=0.67, log_every=1), settings("regression", match=False, log_every=1)
    for config in (both, regression):
        distill(config)
    rows = list(zip(read_metrics(both.out), read_metrics(regression.out), strict=True))
    assert [("loss_kl" in row, "loss_fake" in row) for row, _ in rows] == [(False, False)] * 4 + [(True, True)] * 2
    assert all(row["loss_reg"] == other["loss_reg"] for row, other in rows[:4])


def test_after_regress_until_matching_is_the_only_loss(settings):
    """With further updates of the fake score, which the phase before distribution matching has not."""
    config = settings(match_from=0.34, regress_until=0.67, fake_steps=3, log_every=1)
    distill(config)
    losses = [{key for key in row if key.startswith("loss_")} for row in read_metrics(config.out)]
    regression, matching = {"loss_reg"}, {"loss_kl", "loss_fake"}
    assert losses == [regression] * 2 + [regression | matching] * 2 + [matching] * 2


def test_the_fake_score_learns_from_fake_from_on(settings):
    config = settings(match_from=0.67, fake_from=0.34, log_every=1)
    distill(config)
    assert ["loss_fake" in row for row in read_metrics(config.out)] == [False] * 2 + [True] * 4


def losses_by_step(config):
    """The names of the losses and gradients in each row of the log."""
    names = [{key for key in row if key.startswith(("loss_", "gradient_"))} for row in read_metrics(config.out)]
    return [sorted(key.removeprefix("loss_") for key in row if key.startswith("loss_")) for row in names], names


def test_a_run_resumed_for_more_steps_keeps_its_phases_where_they_were(settings, capsys):
    """And nothing is logged of a network that was not trained; resumed once more, they stay."""
    phases = {"match_from": 0.5, "fake_from": 0.34, "regress_until": 0.84, "lambda_end": 0.5, "lr_decay": True}
    config = settings(log_every=1, evaluate_every=20, sample_every=20, **phases)
    distill(config)
    first, _ = losses_by_step(config)
    capsys.readouterr()
    distill(change(config, resume=config.out, steps=8))
    printed = " ".join(capsys.readouterr().out.split())
    stay = "regression from step 0; regression, fake score from step 2; matching, regression from step 3; matching from"
    assert f"phases stay where they are: {stay} step 5. --lr-decay: the learning rates fall to 0 at step 8" in printed
    distill(change(config, resume=config.out, steps=9, phase_steps=6))
    losses, names = losses_by_step(config)
    assert losses == [*first, *3 * [["fake", "kl"]]]
    assert all(("gradient_fake" in row) == ("loss_fake" in row) for row in names)


@pytest.mark.parametrize("steps", [50, 100, 150, 400])
def test_phases_of_an_extended_run_are_those_it_began_with(steps, settings):
    shares = {"match_from": 0.4, "fake_from": 0.2, "regress_until": 0.9, "lambda_end": 0.0}
    begun = settings(steps=100, lambda_reg=2.0, fake_steps=3, **shares)
    begun.out.mkdir(parents=True)
    write_config(begun, begun.out / "config.toml")
    run = PhaseSchedule(keep_phases(change(begun, resume=begun.out, steps=steps)))
    assert (run.fake_step, run.match_step, run.regression_end) == (20, 40, min(90, steps))
    assert [run.lambda_reg(step) for step in (0, 50, 100, 300)] == [2.0, 1.0, 0.0, 0.0]
    assert run.fake_updates == 20 + 3 * (steps - 40)
    assert sum(phase.steps for phase in run.phases) == steps


def test_a_regression_without_an_end_lasts_as_long_as_an_extended_run(settings):
    begun = settings(steps=100)
    begun.out.mkdir(parents=True)
    write_config(begun, begun.out / "config.toml")
    assert PhaseSchedule(keep_phases(change(begun, resume=begun.out, steps=300))).regresses(299)
    dmd2 = change(begun, method="dmd2", lambda_reg=0.0, resume=begun.out, steps=300)
    assert keep_phases(dmd2) == dmd2


def test_the_work_of_an_eta_follows_the_phases(settings):
    """Images through a network: regression alone, with an update of the fake score, with matching and five of them."""
    phases = {"match_from": 0.5, "fake_from": 0.25, "regress_until": 0.5, "fake_steps": 5, "steps": 8}
    schedule = PhaseSchedule(settings(batch=4, batch_reg=2, **phases))
    regression, fake, matching = 3 * 2, 3 * 4, 4 * (1 + 2 + 1 + 2) + 4 * (5 * 3 + 4)
    assert [schedule.work(step) - schedule.work(step - 1) for step in range(1, 9)] == [
        *[regression] * 2,
        *[regression + fake] * 2,
        *[matching] * 4,
    ]


def test_every_step_is_some_work(settings):
    """As a speed is work by time."""
    for given in ({"match": False}, {"lambda_reg": 0.0}, {"method": "dmd2", "fake_steps": 5, "generator_from": 3}):
        schedule = PhaseSchedule(settings(**given))
        work = [schedule.work(step) for step in range(schedule.config.steps + 1)]
        assert work == sorted(set(work))


@pytest.mark.parametrize("steps", [3, 4])
def test_a_run_can_end_before_its_fake_score_begins(steps, settings, monkeypatch):
    """It was begun for more steps, and is resumed for fewer."""
    config = settings(log_every=1, match_from=0.8, fake_from=0.8, lr_decay=True, save_every=1)
    iterate = Distillation.iterate

    def interrupting(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return iterate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "iterate", interrupting)
        with pytest.raises(TrainingStopped):
            distill(config)
    assert distill(change(config, resume=config.out, steps=steps)) is not None
    losses, _ = losses_by_step(config)
    assert losses == steps * [["reg"]]
