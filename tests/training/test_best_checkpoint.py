"""The best weights of a run are those of the lowest value in its own past, however it is interrupted and resumed."""

import contextlib
import itertools
import json

import pytest
import torch
from torch import nn

from dmdistill.training.best_checkpoint import BestCheckpoint
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

VALUES = [5.0, 3.0, 4.0, 2.0, 2.0, 6.0, 1.0, 7.0]  # of steps 1 ... 8


@pytest.fixture
def run(tmp_path):
    """Trains a number for eight steps; stops after a step as a killed process does, resumes."""

    def train(*, until=8, resume=False, values=VALUES, save_every=3):
        network = nn.Linear(1, 1)
        update = NetworkOptimizer(network, lr=0.1, steps=8)
        trainer = Trainer(
            tmp_path,
            steps=8,
            updates={"one": update},
            rng=torch.Generator(),
            save_every=save_every,
        )
        best = BestCheckpoint(trainer)
        if resume:
            trainer.restore()

        def evaluate(step):
            state = {"step": torch.tensor(step)}
            best.update(step, "x", values[step - 1], lambda: state)
            if step == until < 8:
                raise KeyError("killed")  # after the weights are stored, before the log has its row
            return {"metric_x": values[step - 1], "metric_y": values[step - 1] + 1, "other": 0.0}

        def iterate(_):
            loss = network.weight.square().sum()
            update(loss)
            return {"loss": loss.detach()}

        with contextlib.suppress(KeyError):
            trainer.fit(iterate, hooks=[(1, evaluate)], name="")
        return best

    return train


def test_the_lowest_value_is_stored_with_its_weights(run, tmp_path):
    best = run()
    assert (best.value, best.step, best.name, int(best.weights()["step"])) == (1.0, 7, "x", 7)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert best.value == min(row["metric_x"] for row in rows)


@pytest.mark.parametrize("save_every", [1, 2, 3, 5])
def test_a_killed_run_resumes_with_the_best_of_its_own_past(run, save_every, tmp_path):
    """Its future differs: what was found before the kill but after the last checkpoint is not of this run."""
    for stop in range(1, 8):
        for file in [*tmp_path.rglob("*.*")]:
            file.unlink()
        run(until=stop, save_every=save_every)
        saved = stop - 1 - (stop - 1) % save_every  # the killed step is not saved
        values = VALUES[:saved] + [value + 1.5 for value in VALUES[saved:]]
        best = run(resume=True, values=values, save_every=save_every)
        expected = min(values)
        assert (best.value, best.step) == (expected, values.index(expected) + 1)
        assert int(best.weights()["step"]) == best.step


def test_few_files_stay_on_disk(run, tmp_path):
    for stop in (4, 6):
        run(until=stop, resume=stop > 4, save_every=2)
    run(resume=True, save_every=2, values=list(itertools.islice(itertools.count(9, -1), 8)))
    assert len(list((tmp_path / "checkpoints").glob("best-*"))) <= 3


def test_nan_is_never_the_best(run):
    assert run(values=[float("nan"), 3.0, *[float("nan")] * 6]).step == 2


def test_the_best_does_not_depend_on_the_log(run, tmp_path):
    """Whatever becomes of metrics.jsonl, a resumed run has the best of before."""
    run(until=5)
    (tmp_path / "metrics.jsonl").unlink()
    best = run(resume=True, values=[9.0] * 8)
    assert (best.value, best.step, int(best.weights()["step"])) == (3.0, 2, 2)


def test_damaged_best_weights_are_one_line_when_a_run_resumes(run, tmp_path):
    run(until=5)
    [file] = (tmp_path / "checkpoints").glob("best-00000002.*")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"best-00000002\.safetensors .*; remove it") as caught:
        run(resume=True)
    assert "\n" not in str(caught.value)


def test_missing_best_weights_are_reported_and_replaced(run, tmp_path, capsys):
    run(until=5)
    [file] = (tmp_path / "checkpoints").glob("best-00000002.*")
    file.unlink()
    best = run(resume=True, values=[9.0, 9.0, 9.0, 5.0, *[9.0] * 4])
    assert f"{file} is missing" in capsys.readouterr().out
    assert (best.value, best.step, int(best.weights()["step"])) == (5.0, 4, 4)


def test_a_run_that_returns_to_a_checkpoint_returns_to_its_best(run, tmp_path):
    best = run()
    assert best.step == 7
    (tmp_path / "checkpoints" / "step-00000008.pt").unlink()
    assert best.trainer.load()
    assert (best.trainer.step, best.value, best.step, int(best.weights()["step"])) == (6, 2.0, 4, 4)
    assert not (tmp_path / "checkpoints" / "best-00000007.safetensors").exists()
