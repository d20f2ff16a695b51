"""What `dmdistill info` says of a run: of a real one, and of courses made up."""

import json

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.info.run_status import health, run_status
from dmdistill.training.metrics_log import read_metrics


def log(folder, rows, steps=100):
    folder.mkdir()
    (folder / "config.toml").write_text(f"steps = {steps}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_left_goes_by_the_last_rows(tmp_path):
    """Ten slow steps, then 50 of two seconds: 40 more are 80 seconds."""
    rows = [{"step": 10, "seconds": 500.0}] + [{"step": 10 + 10 * i, "seconds": 500.0 + 20 * i} for i in range(1, 6)]
    found = run_status(log(tmp_path / "run", rows), rows)
    assert found["step"] == "60 of 100"
    assert found["left"].startswith("0:01:20 ")
    assert found["training"] == "10.0 min"


def test_of_a_finished_run_nothing_is_left(tmp_path):
    rows = [{"step": 100, "seconds": 60.0}]
    assert run_status(log(tmp_path / "run", rows), rows) == {"step": "100 of 100", "training": "1.0 min"}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([30, 20, 10], "fell from 30 to 10; best 10, the last"),
        ([30, 10, 20], "fell from 30 to 20; best 10, at step 2: since then it is no better"),
        ([10, 10.1], "stayed at 10.1; best 10, at step 1: since then it is no better"),
        ([10, 30], "rose from 10 to 30; best 10, at step 1: since then it is no better"),
        ([10], "10, measured once"),
    ],
)
def test_the_course_of_the_distance_in_words(figures, said):
    rows = [{"step": i, "seconds": 1.0, "frechet_ema50": float(figure)} for i, figure in enumerate(figures, 1)]
    assert health(rows) == {"course of frechet_ema50": said}


def test_bins_are_shown_in_order_with_what_became_of_them():
    rows = [{f"gap_{i}": scale * (i + 1) for i in range(8)} for scale in (1.0, 0.1)]
    said = health(rows)["mean|mu_fake - mu_real|"]
    assert said == "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8, least noise first; their mean fell from 4.5 to 0.45"


def test_what_is_not_finite_is_named():
    assert health([{"step": 1, "loss_kl": float("nan"), "loss_reg": 1.0}])["not finite"] == "loss_kl"


def test_a_real_run_is_described(tiny_teacher, tmp_path, capsys, monkeypatch):
    """One stopped on its way: its step, its time left, its health."""
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    given = ["--steps", "4", "--batch", "3", "--lambda-reg", "0", "--log-every", "1", "--evaluate-every", "2"]
    small = ["--report-images", "4", "--solver-steps", "2", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
    main(["distill", "--teacher", str(tiny_teacher), "--out", str(run), *given, *small])
    rows = read_metrics(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    capsys.readouterr()
    main(["info", str(run)])
    said = capsys.readouterr().out
    assert "2 of 4" in said
    assert "left" in said
    assert " ".join(f"{rows[1][f'gap_{i}']:.2g}" for i in range(8)) in said
