"""What `dmdistill info` says of a run: of a real one, of invented logs, and of damaged ones."""

import json
import shutil

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.info.run_health import verdict
from dmdistill.commands.info.run_status import describe_report, progress
from dmdistill.commands.info.run_trends import describe_trends
from dmdistill.training.metrics_log import read_metrics

ROW = {"step": 10, "seconds": 5.0, "loss_reg": 1.0}


def write_run(folder, rows, config="steps = 100\n[optimizer]\ngrad_clip = 10.0\n"):
    folder.mkdir()
    (folder / "config.toml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_time_left_follows_from_the_last_rows():
    """Ten slow steps, then 50 of two seconds: 40 more are 80 seconds."""
    rows = [{"step": 10, "seconds": 500.0}] + [{"step": 10 + 10 * i, "seconds": 500.0 + 20 * i} for i in range(1, 6)]
    status = progress(rows, 100)
    assert status["step"] == "60 of 100"
    assert status["left"].startswith("0:01:20 ")
    assert status["training"] == "10.0 min"


def test_a_finished_run_has_no_time_left():
    assert progress([{"step": 100, "seconds": 60.0}], 100) == {"step": "100 of 100", "training": "1.0 min"}


@pytest.mark.parametrize(
    ("values", "trend"),
    [
        ([30, 20, 10], "fell from 30 to 10; best 10 at step 3"),
        ([30, 10, 20], "fell from 30 to 20; best 10 at step 2, no better since"),
        ([10, 10.1], "stayed at 10.1; best 10 at step 1, no better since"),
        ([10, 30], "rose from 10 to 30; best 10 at step 1, no better since"),
        ([10], "10, measured once"),
    ],
)
def test_the_trend_of_a_distance_in_words(values, trend):
    rows = [{"step": i, "seconds": 1.0, "frechet_ema50": float(value)} for i, value in enumerate(values, 1)]
    assert describe_trends(rows) == {"frechet_ema50": trend}


def test_noise_levels_are_shown_in_order_with_the_trend_of_their_mean():
    rows = [{f"gap_{i}": scale * (i + 1) for i in range(8)} for scale in (1.0, 0.1)]
    text = describe_trends(rows)["gap_0 ... 7"]
    assert "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8, from least to most noise; their mean fell from 4.5 to 0.45" in text


TEACHER = {"teacher_mean": 0.1, "teacher_std": 0.5, "teacher_saturation": 0.3}
BESIDE = {  # what else is measured where a metric is
    "fake_lag": {f"gap_{i}": 0.1 for i in range(8)},
    "accuracy_real": {"accuracy_generated": 0.97},
    "sample_mean": TEACHER,
    "sample_std": TEACHER,
    "sample_mean_1": {"teacher_mean_1": 0.0, "teacher_std_1": 0.5},
    "sample_saturation": TEACHER,
}


def make_log(key, values):
    """A log of one metric, or of all noise levels of a metric that ends in an underscore, and of what is beside it."""
    keys = [f"{key}{i}" for i in range(8)] if key.endswith("_") else [key]
    beside = {"seconds": 1.0, **BESIDE.get(key, {})}
    return [{"step": i, **beside, **dict.fromkeys(keys, value)} for i, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("key", "healthy", "unhealthy", "problem"),
    [
        ("loss_kl", [1.0, 2.0], [1.0, float("nan")], "loss_kl: NaN or infinite"),
        ("frechet_ema50", [30.0, 10.0, 15.0], [30.0, 10.0, 25.0], "frechet_ema50 rose from 10 at step 2 to 25"),
        (
            "frechet_ema50",
            [30.0, 30.0, 29.0, 28.0, 26.0],
            [30.0, 29.0, 28.0, 31.0, 29.0],
            "frechet_ema50 was 30 at step 1 and at best 28 since, the run gains nothing: raise --lr where",
        ),
        (
            "gradient_fake",
            [20.0, 20.0, 3.0, 3.0, 2.0],
            [20.0, 10.0, 30.0, 3.0, 2.0],
            "gradient_fake is above --grad-clip 10",
        ),
        ("gap_", [0.0, 0.1, 0.5, 0.4, 0.3], [0.0, 0.1, 0.1, 0.3, 0.9], "the gap grew from 0.3 to 0.9"),
        ("sample_std", [0.7, 0.5], [0.7, 0.3, 0.06], "sample_std fell from 0.7 to 0.06"),
        ("sample_std", [0.01, 0.03, 0.06], [0.03, 0.03, 0.03, 0.04], "sample_std stays at 0.04, the teacher's is 0.5"),
        (
            "sample_std",
            [30.0, 20.0, 12.0],
            [12.0, 11.0, 12.0],
            "sample_std is 12, the teacher's 0.5, the samples are",
        ),
        (
            "sample_std",
            [0.3, 0.5, 0.9],
            [0.3, 0.5, 1.1],
            "sample_std is 1.1, the teacher's 0.5, the samples are",
        ),
        ("loss_reg", [0.3, 0.2, 0.1, 0.1, 0.2, 0.2], [0.1, 0.3, 0.3, 0.3, 0.3, 0.4], "loss_reg rose from 0.2 to 0.35"),
        ("fake_lag", [9.0, 9.0, 1.2, 0.9, 3.0], [0.9, 1.0, 2.0, 1.0, 4.0], "the fake score lags, its loss is 2 "),
        ("accuracy_real", [0.95, 0.99, 0.6], [0.6, 0.8, 0.95], "the discriminator is right of 95% of all images"),
        ("sample_mean", [3.0, 0.1, 0.2, 0.3], [0.0, 0.1, 0.9, -0.8], "the brightness drifts, it is 1.7 standard"),
        ("sample_mean_1", [3.0, 0.1, 0.2], [0.0, 1.0, 1.0], "the mean of channel 1 drifts, it is 2 standard"),
        ("sample_saturation", [0.9, 0.3], [0.3, 0.4, 0.6], "the saturation of the samples is 0.60, the teacher's 0.30"),
    ],
)
def test_the_verdict_names_what_is_wrong(key, healthy, unhealthy, problem):
    assert verdict(make_log(key, healthy), 10.0).startswith(("healthy so far: ", "too early to tell: "))
    assert verdict(make_log(key, unhealthy), 10.0).startswith(f"unhealthy: {problem}")


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("sample_std", [0.7, 0.4, 0.28], "sample_std 0.28 is 0.56 of the teacher's (0.1 to 2 is healthy)"),
        ("sample_std", [20.0, 4.0, 0.6], "sample_std 0.6 is 1.20 of the teacher's (0.1 to 2 is healthy)"),
        ("loss_reg", [0.4, 0.2, 0.1, 0.3, 0.2, 0.2], "loss_reg went from 0.3 to 0.2"),
        ("sample_mean", [0.0, 0.1, 0.2], "brightness within 0.5 std of the teacher's"),
    ],
)
def test_the_verdict_says_what_was_checked(key, values, said):
    assert verdict(make_log(key, values), 10.0) == f"healthy so far: all values are finite, {said}"


def test_a_run_from_a_good_student_need_not_gain():
    rows = make_log("frechet_ema50", [30.0, 29.0, 28.0, 31.0, 29.0])
    assert "gains nothing" in verdict(rows, None)
    assert "gains nothing" not in verdict(rows, None, start="runs/first")


def test_without_a_teachers_spread_the_samples_have_their_own_largest():
    rows = [{"step": step, "sample_std": value} for step, value in enumerate((0.8, 0.4))]
    assert verdict(rows, None).endswith("sample_std 0.4 is 0.50 of its largest (at least 0.1)")


def test_the_verdict_waits_for_measurements():
    """Finite values show nothing else, nor do small gradients; large ones count from five rows on, by a known norm."""
    assert verdict(make_log("gradient_fake", [1.0] * 5), 10.0).startswith("too early to tell: all values")
    assert verdict([ROW], 10.0) == "too early to tell: all values are finite"
    rows = make_log("gradient_fake", [99.0] * 5)
    assert verdict(rows, 10.0).startswith("unhealthy: gradient_fake")
    assert verdict(rows[:4], 10.0).startswith("too early to tell")
    assert verdict(rows, None).startswith("too early to tell")


def test_the_verdict_on_samples_of_noise_says_when_they_became_it():
    assert "as at the start: start the student at a lower" in verdict(make_log("sample_std", [12.0, 11.0, 12.0]), None)
    assert "which came in training: lower --lr" in verdict(make_log("sample_std", [0.3, 0.5, 1.1]), None)


def test_the_verdict_on_samples_of_noise_gives_no_other_advice():
    """Of noise the fake score lags, too, and the advice for that would contradict."""
    noise, lag = make_log("sample_std", [12.0, 11.0, 12.0]), make_log("fake_lag", [3.0, 3.0, 3.0])
    rows = [one | other for one, other in zip(noise, lag, strict=True)]
    assert "the fake score lags" in verdict(lag, None)
    assert "the fake score lags" not in verdict(rows, None)
    assert verdict(rows, None).startswith(
        "unhealthy: sample_std is 12, the teacher's 0.5, the samples are mostly noise"
    )


def test_a_run_that_has_ended_is_judged_by_what_was_measured_once():
    rows = make_log("fake_lag", [1.6])
    assert verdict(rows, None).startswith("too early to tell")
    lags = "unhealthy: the fake score lags, its loss is 1.6 times the teacher's: "
    assert verdict(rows, None, ended=True).startswith(lags)
    assert verdict(make_log("sample_std", [0.4]), None, ended=True).startswith("healthy: ")
    short = verdict([ROW], None, ended=True)
    assert short.startswith("too short to judge: all values are finite; a smaller --evaluate-every")


def test_a_fake_score_that_has_not_begun_to_learn_has_no_lag():
    rows = make_log("fake_lag", [9.0, 9.0, 9.0])
    assert verdict(rows, 10.0).startswith("unhealthy: the fake score lags")
    still = [row | {f"gap_{i}": 0.0 for i in range(8)} for row in rows]
    assert verdict(still, 10.0).startswith("too early to tell")


def test_the_final_report_is_told(tmp_path):
    file = tmp_path / "report.json"
    assert describe_report(file) == {}
    model = {"model": "x", "evaluations_per_image": 1, "images": 500}
    report = {
        "teacher": {**model, "seconds_per_image": 0.1, "metrics": {"frechet_judge": 1.5}},
        "student": {**model, "seconds_per_image": 0.002, "metrics": {"frechet_judge": 3.0}},
    }
    file.write_text(json.dumps(report))
    assert describe_report(file) == {
        "final frechet_judge": "student 3, teacher 1.5; ratio 2.00, over 500 images each",
        "final ms per image": "student 2, teacher 100; 50.0 x faster",
    }


@pytest.mark.parametrize(
    "row",
    [
        {"step": 20, "loss_reg": 1.0},
        {"step": 20, "seconds": 6.0, "gap_0": 0.1, "gap_1": 0.1},
        {"step": 20, "seconds": 6.0, "fake_loss_0": 0.1},
        *({"step": 20, "seconds": 6.0, "loss_reg": odd} for odd in ("1.0", None, [1.0], {"mean": 1.0})),
        *({"step": 20, "seconds": odd} for odd in ("6", float("inf"), float("nan"), 1e300)),
        [20, 6.0],
        {"seconds": 6.0},
    ],
    ids=str,
)
def test_a_damaged_row_is_one_line(row, tmp_path, error_line):
    run = write_run(tmp_path / "run", [ROW, row])
    line = error_line("info", run)
    assert "metrics.jsonl" in line
    assert "damaged" in line
    assert "20" in line or "line 2" in line


@pytest.mark.parametrize(
    "config",
    [
        'steps = "many"\n',
        "steps = inf\n",
        "steps = -1\n",
        f"steps = {10**400}\n",
        "[optimizer]\ngrad_clip = [1]\n",
        "steps = \n",
        "grad_clip = true false\n",
    ],
)
def test_a_damaged_configuration_is_one_line(config, tmp_path, error_line):
    assert "config.toml" in error_line("info", write_run(tmp_path / "run", [ROW], config))


MODEL = {"images": 5, "seconds_per_image": 0.1, "metrics": {"fid": 2.0}}


@pytest.mark.parametrize(
    "report",
    [
        "{",
        "[]",
        "3",
        json.dumps({"teacher": MODEL}),
        *(json.dumps({"teacher": MODEL, "student": {**MODEL, key: None}}) for key in MODEL),
        json.dumps({"teacher": {**MODEL, "metrics": {"fid": 0}}, "student": MODEL}),
        json.dumps({"teacher": {**MODEL, "metrics": {}}, "student": MODEL}),
        json.dumps({"teacher": MODEL, "student": {**MODEL, "metrics": {"fid": "2"}}}),
    ],
)
def test_a_damaged_report_is_one_line(report, tmp_path, error_line):
    run = write_run(tmp_path / "run", [ROW])
    (run / "report.json").write_text(report)
    if '"images": null' not in report:  # which is printed as it is
        assert "report.json" in error_line("info", run)


def test_a_run_whose_student_is_damaged_is_told_before_the_error(tmp_path, capsys):
    run = write_run(tmp_path / "run", [ROW])
    (run / "student").mkdir()
    (run / "student" / "config.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["info", str(run)])
    printed = capsys.readouterr()
    assert "10 of 100" in printed.out
    assert "config.json" in printed.err


def test_a_real_run_is_described(tiny_teacher, tmp_path, capsys, monkeypatch, error_line):
    """One that is done, and one that was stopped early: its step, its time left, its health."""
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    settings = ["--steps", "4", "--batch", "3", "--lambda-reg", "0", "--log-every", "1", "--evaluate-every", "2"]
    small = ["--report-images", "4", "--solver-steps", "2", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
    main(["distill", "--teacher", str(tiny_teacher), "--out", str(run), *settings, *small])
    capsys.readouterr()
    main(["info", str(run)])
    printed = capsys.readouterr().out
    for text in ("tiny-student-run, a student", "loss_kl", "4 of 4", "verdict", "x faster"):
        assert text in printed
    rows = read_metrics(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("")
    assert "metrics.jsonl ends at step 0, its student was written after step 4" in error_line("info", run)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    assert "metrics.jsonl ends at step 2, its student was written after step 4" in error_line("info", run)
    shutil.rmtree(run / "student")
    main(["info", str(run)])
    printed = capsys.readouterr().out
    for text in ("loss_kl", "2 of 4", "left", "verdict"):
        assert text in printed
    assert " ".join(f"{rows[1][f'gap_{i}']:.2g}" for i in range(8)) in printed


def test_a_run_that_has_only_begun_is_described(tiny_teacher, tmp_path, capsys, monkeypatch, error_line):
    """While it makes its pairs, and with a checkpoint before the first row of its log."""
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    pairs = ["--pair-count", "6", "--solver-steps", "2", "--batch-reg", "3", "--device", "cpu", "--threads", "1"]
    given = ["distill", "--teacher", str(tiny_teacher), "--out", str(run), "--steps", "4", "--batch", "3", *pairs]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dmdistill.data.shards.write_safetensors", interrupted)
        with pytest.raises(SystemExit):
            main(given)
    capsys.readouterr()
    main(["info", str(run)])
    printed = capsys.readouterr().out
    assert "0 of 4" in printed
    assert "0 of 6 made" in printed
    assert f"is the folder of a run that has no model yet: `dmdistill info {run}`" in error_line("sample", run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-00000003.pt").write_bytes(b"")
    main(["info", str(run)])
    assert "3 of 4" in capsys.readouterr().out


def test_no_run_is_healthy_while_its_learning_rate_rises():
    """One that is sick is named in any case."""
    rows = make_log("frechet_ema", [9.0, 8.0, 7.0])
    assert verdict(rows, None, warmup=3).startswith("healthy so far: ")
    assert verdict(rows, None, warmup=4).startswith("too early to tell: the learning rate rises until step 4; ")
    assert verdict(rows, None, warmup=4, ended=True).startswith("too short to judge: the learning rate rises ")
    assert verdict(make_log("frechet_ema", [9.0, 99.0, 999.0]), None, warmup=4).startswith("unhealthy: ")
