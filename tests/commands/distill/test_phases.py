"""The phases of a distillation, by the losses in its log."""

from dmdistill.commands.distill.command import distill
from dmdistill.training.metrics_log import read_metrics


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
