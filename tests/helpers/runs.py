"""What the tests of runs share: their results without the clock, and runs without figures."""

import torch

from dmdistill.commands.distill import report
from dmdistill.commands.evaluate import command as evaluation
from dmdistill.training.checkpoints import write_single_file
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


def losses(folder):
    """All names and values of the log but the clock's."""
    named = {f"{row['step']} {name}": x for row in read_metrics(folder) for name, x in row.items() if name != "seconds"}
    return list(named), torch.tensor(list(named.values()))


def weights(folder, step=4):
    """All weights of the networks and EMAs, and AdamW's moments."""
    sharded = folder / "checkpoints" / f"step-{step:08d}"
    file = write_single_file(sharded) if sharded.exists() else sharded.with_suffix(".pt")
    updates = torch.load(file, weights_only=True)["updates"]
    found = []
    for update in updates.values():
        for tensors in (update["network"], *update["emas"], *update["optimizer"]["state"].values()):
            found += [tensor.flatten() for tensor in tensors.values()]
    return torch.cat(found)


def assert_equal_to_rounding(folder, other, step=4):
    """Two runs logged the same values, and their checkpoints of this step hold the same."""
    (names, found), (others, expected) = losses(folder), losses(other)
    assert names == others
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(weights(folder, step), weights(other, step), rtol=1e-4, atol=1e-5)
