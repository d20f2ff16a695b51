"""What the tests of runs share: their results without the clock, and runs without figures."""

from dmdistill.commands.distill import report
from dmdistill.commands.evaluate import command as evaluation
from dmdistill.training.metrics_log import read_metrics


def student_bytes(folder):
    """The student's weights, as they are on disk."""
    return (folder / "student" / "model.safetensors").read_bytes()


def logged_values(folder):
    """The rows of the log, without the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(folder)]


def skip_figures(patch):
    """Leave out curves, pictures and timings, by a `pytest.MonkeyPatch`: they take most of a run this small."""
    for name in ("draw_curves", "draw_comparison"):
        patch.setattr(report, name, lambda *_, **__: None)
    patch.setattr(evaluation, "seconds_per_image", lambda _, **__: 1.0)
