"""The training loop: a run that is stopped and resumed equals one that never stopped."""

import json
import math
import os
import signal

import pytest
import torch
from torch import nn

from dmdistill.training.metrics_log import read_metrics
from dmdistill.training.nonfinite import NonFiniteError
from dmdistill.training.optimizer import NetworkOptimizer
from dmdistill.training.trainer import Trainer

STEPS = 11


class Toy:
    """A run small enough to look through: two networks, random data, a log and checkpoints."""

    def __init__(self, folder, *, resume=False, steps=STEPS, **settings):
        torch.manual_seed(0)
        self.rng = torch.Generator().manual_seed(3)
        self.updates = {
            name: NetworkOptimizer(nn.Linear(3, 2), lr=0.05, steps=steps, warmup=3, decay=True, halflives=[2.0])
            for name in ("generator", "fake")
        }
        settings = {"log_every": 2, "save_every": 4} | settings
        self.trainer = Trainer(folder, steps=steps, updates=self.updates, rng=self.rng, **settings)
        if resume:
            self.trainer.restore()
        self.steps_taken = []
        self.before = lambda step: None

    def iterate(self, step):
        self.steps_taken.append(step)
        self.before(step)
        found = {}
        for name, update in self.updates.items():
            loss = (update.network(torch.randn(5, 3, generator=self.rng)) - 1).square().mean()
            update(loss)
            found[f"loss_{name}"] = loss.detach()
        return found

    def fit(self, **hooks):
        return self.trainer.fit(self.iterate, name="toy", **hooks)

    def state(self):
        return [plain(update.state_dict()) for update in self.updates.values()], self.rng.get_state().tolist()


def plain(state):
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [plain(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def log(folder):
    """The log without the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(folder)]


def checkpoints(folder):
    return sorted(file.name for file in (folder / "checkpoints").iterdir())


def stop_at(step, number=signal.SIGINT):
    return lambda now: signal.raise_signal(number) if now == step else None


@pytest.fixture
def uninterrupted(tmp_path):
    toy = Toy(tmp_path / "uninterrupted")
    assert toy.fit()
    return toy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("stop", [0, 4, 5, 9])
def test_stopped_and_resumed_equals_never_stopped(stop, number, uninterrupted, tmp_path):
    """Weights, optimizers, EMAs, random draws and the log, bit for bit."""
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(number)
    folder = tmp_path / "stopped"
    first = Toy(folder)
    first.before = stop_at(stop, number)
    assert not first.fit()
    assert first.trainer.stop_signal == number
    assert first.steps_taken == list(range(stop + 1))  # the step in hand is ended
    assert checkpoints(folder)[-1] == f"step-{stop + 1:08d}.pt"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(number)) == handlers

    second = Toy(folder, resume=True)
    assert second.fit()
    assert second.steps_taken == list(range(stop + 1, STEPS))
    assert second.state() == uninterrupted.state()
    assert log(folder) == log(tmp_path / "uninterrupted")
    assert [row["step"] for row in log(folder)] == [2, 4, 6, 8, 10, 11]


def test_stopped_after_every_step_equals_never_stopped(uninterrupted, tmp_path):
    folder = tmp_path / "stopped"
    for stop in (1, 2, 3, 7):
        toy = Toy(folder, resume=stop > 1)
        toy.before = stop_at(stop)
        assert not toy.fit()
    last = Toy(folder, resume=True)
    assert last.fit()
    assert last.state() == uninterrupted.state()
    assert log(folder) == log(tmp_path / "uninterrupted")


class KilledError(Exception):
    """Stands in for a power cut: nothing is saved."""


@pytest.mark.parametrize("stop", [2, 6, 10])
def test_killed_and_resumed_equals_never_killed(stop, uninterrupted, tmp_path):
    """From the last checkpoint, or from the start where there is none; the log has every step once."""
    folder = tmp_path / "killed"

    def kill(step):
        if step == stop:
            raise KilledError

    first = Toy(folder)
    first.before = kill
    with pytest.raises(KilledError):
        first.fit()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "sec')  # the line in hand
    second = Toy(folder, resume=True)
    assert second.fit()
    assert second.steps_taken[0] == stop // 4 * 4
    assert second.state() == uninterrupted.state()
    assert log(folder) == log(tmp_path / "uninterrupted")


def test_a_second_interrupt_ends_the_step_at_once(tmp_path):
    toy, before = Toy(tmp_path), signal.getsignal(signal.SIGINT)
    toy.before = lambda step: [signal.raise_signal(signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        toy.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_resumed_does_nothing(uninterrupted, tmp_path):
    again = Toy(tmp_path / "uninterrupted", resume=True)
    assert again.fit()
    assert again.steps_taken == []
    assert again.state() == uninterrupted.state()


def test_a_longer_run_resumes_from_a_finished_one(uninterrupted, tmp_path):
    longer = Toy(tmp_path / "uninterrupted", resume=True, steps=STEPS + 2)
    assert longer.fit()
    assert longer.steps_taken == [STEPS, STEPS + 1]
    assert [row["step"] for row in log(tmp_path / "uninterrupted")] == [2, 4, 6, 8, 10, 11, 12, 13]


@pytest.mark.parametrize(("keep", "expected"), [(1, [11]), (2, [8, 11]), (9, [4, 8, 11])])
def test_only_the_last_checkpoints_stay(keep, expected, tmp_path):
    Toy(tmp_path, keep=keep).fit()
    assert checkpoints(tmp_path) == [f"step-{step:08d}.pt" for step in expected]


def test_a_fresh_run_starts_a_fresh_log(uninterrupted, tmp_path):
    Toy(tmp_path / "uninterrupted").fit()
    assert [row["step"] for row in log(tmp_path / "uninterrupted")] == [2, 4, 6, 8, 10, 11]


def test_the_log_has_means_over_its_interval(tmp_path):
    toy = Toy(tmp_path, log_every=4)
    losses = []
    iterate = toy.iterate
    toy.iterate = lambda step: losses.append(iterate(step)) or losses[-1]
    toy.fit()
    groups = [losses[0:4], losses[4:8], losses[8:11]]
    for row, group in zip(log(tmp_path), groups, strict=True):
        mean = sum(step["loss_fake"].item() for step in group) / len(group)
        assert row["loss_fake"] == pytest.approx(mean, rel=1e-5)
        assert row["gradient_fake"] > 0


def test_hooks_are_called_at_their_steps_and_after_the_last(tmp_path):
    """Two of the same interval both."""
    called = []

    def hook(name):
        return lambda step: called.append((name, step)) or {name: step / 2}

    Toy(tmp_path, log_every=100).fit(hooks=[(5, hook("a")), (5, hook("b")), (8, hook("c"))])
    assert called == [("a", 5), ("b", 5), ("c", 8), ("a", 10), ("b", 10), ("a", 11), ("b", 11), ("c", 11)]
    figures = [{key: row[key] for key in ("step", "a", "b", "c") if key in row} for row in log(tmp_path)]
    assert figures == [
        {"step": 5, "a": 2.5, "b": 2.5},
        {"step": 8, "c": 4.0},
        {"step": 10, "a": 5.0, "b": 5.0},
        {"step": 11, "a": 5.5, "b": 5.5, "c": 5.5},
    ]


@pytest.mark.parametrize("when", [0, 2, 6])
def test_nan_stops_the_run_and_its_last_checkpoint_is_resumed(when, uninterrupted, tmp_path):
    """Bit for bit, though a part of the step had been done: a step that failed leaves no checkpoint."""
    toy = Toy(tmp_path / "nan")
    toy.iterate = with_nan(toy, when, times=99)
    where = r". .*checkpoints has the state after step 4" if when == 6 else ""
    with pytest.raises(NonFiniteError, match=rf"^step {when}: the network's loss is .*{where}; a lower learning rate"):
        toy.fit()
    assert (tmp_path / "nan" / "checkpoints").exists() == (when == 6)
    again = Toy(tmp_path / "nan", resume=True)
    assert again.trainer.step == (4 if when == 6 else 0)
    assert again.fit()
    assert again.state() == uninterrupted.state()


def test_a_run_goes_on_on_another_kind_of_device(tmp_path, capsys):
    """CUDA's generator has another state: the draws that follow are new ones, the same in every such resume."""
    Toy(tmp_path, steps=4).fit()
    file = tmp_path / "checkpoints" / "step-00000004.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"rng": torch.zeros(16, dtype=torch.uint8)}, file)
    found = []
    for _ in range(2):
        toy = Toy(tmp_path, resume=True)
        assert "another kind of device: from step 4 on random draws are others" in capsys.readouterr().out
        found.append(torch.randn(3, generator=toy.rng).tolist())
        toy.trainer.load()  # as after NaN
        assert torch.randn(3, generator=toy.rng).tolist() == found[-1]
    assert found[0] == found[1] != torch.randn(3, generator=torch.Generator().manual_seed(3)).tolist()
    assert toy.fit()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), torch.distributed.DistBackendError("x")]
)
def test_what_fails_in_reading_a_good_checkpoint_is_not_its_fault(error, tmp_path, monkeypatch):
    Toy(tmp_path).fit()

    def fail(self, state):
        raise error

    monkeypatch.setattr(NetworkOptimizer, "load_state_dict", fail)
    with pytest.raises(type(error), match=f"^{error}$"):
        Toy(tmp_path, resume=True)


def with_nan(toy, when, *, times):
    """Return an iterate with a NaN loss at one step, the first `times` times that it is reached."""
    met = []

    def iterate(step):
        losses = Toy.iterate(toy, step)
        if step == when:
            met.append(step)
            if len(met) <= times:
                toy.updates["fake"](toy.updates["fake"].network(torch.full((1, 3), math.nan)).sum())
        return losses

    return iterate


@pytest.mark.parametrize(("when", "detected"), [(4, 6), (6, 8), (9, 10), (10, 11)])
def test_nan_is_detected_before_anything_is_logged_measured_or_saved(when, detected, tmp_path, capsys):
    """Then the run goes back to its last checkpoint and takes the same steps again, up to the very one."""
    toy, measured = Toy(tmp_path, log_every=2), []
    toy.iterate = with_nan(toy, when, times=99)
    with pytest.raises(NonFiniteError, match=rf"^step {when}: "):
        toy.fit(hooks=[(1 if when == 10 else 2, lambda step: measured.append(step) or {"x": 1.0})])
    saved = when // 4 * 4
    assert toy.steps_taken == [*range(detected), *range(saved, when + 1)]
    assert max(measured) <= when
    assert f"before {detected}: returning to the last checkpoint" in capsys.readouterr().out
    assert all(math.isfinite(value) for row in read_metrics(tmp_path) for value in row.values())
    assert [row["step"] for row in read_metrics(tmp_path)] == sorted({row["step"] for row in read_metrics(tmp_path)})


@pytest.mark.parametrize("when", [4, 6, 10])
def test_nan_that_does_not_recur_leaves_no_trace(when, uninterrupted, tmp_path):
    """A cosmic ray, or an operation that is not deterministic."""
    toy = Toy(tmp_path / "ray")
    toy.iterate = with_nan(toy, when, times=1)
    assert toy.fit()
    assert toy.state() == uninterrupted.state()
    assert log(tmp_path / "ray") == log(tmp_path / "uninterrupted")


def test_nan_without_a_checkpoint_to_return_to_is_reported(tmp_path):
    toy = Toy(tmp_path)
    toy.iterate = with_nan(toy, 6, times=99)

    def remove_checkpoint(step):
        toy.trainer.checkpoints.wait()
        (tmp_path / "checkpoints" / "step-00000004.pt").unlink(missing_ok=True)

    toy.before = remove_checkpoint
    with pytest.raises(NonFiniteError, match=r"^step 8 or shortly before: .* no checkpoint is left"):
        toy.fit()


def test_until_the_first_checkpoint_every_step_is_checked(tmp_path):
    toy, checked = Toy(tmp_path, save_every=4), []
    toy.before = lambda step: checked.append(toy.updates["fake"].check_finite)
    toy.fit()
    assert checked == [True] * 4 + [False] * (STEPS - 4)
    again = Toy(tmp_path, resume=True, steps=STEPS + 2)
    again.before = lambda step: checked.append(again.updates["fake"].check_finite)
    again.fit()
    assert checked[STEPS:] == [False, False]


def optimizer_tensors(update):
    """Every tensor of the optimizer and the EMAs."""
    for moments in update["optimizer"]["state"].values():
        yield from moments.values()
    for average in update["emas"]:
        yield from average.values()


def test_checkpoints_load_as_plain_weights(uninterrupted, tmp_path):
    state = torch.load(tmp_path / "uninterrupted" / "checkpoints" / f"step-{STEPS:08d}.pt", weights_only=True)
    assert plain(state["updates"]["fake"]) == plain(uninterrupted.updates["fake"].state_dict())


DAMAGED = [b"", b"PK\3\4 cut short", b"not a checkpoint"]


@pytest.mark.parametrize("content", DAMAGED)
def test_resuming_before_a_damaged_checkpoint_equals_never_stopped(content, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "again"
    Toy(folder).fit()
    damaged = folder / "checkpoints" / f"step-{STEPS:08d}.pt"
    damaged.write_bytes(content)
    capsys.readouterr()
    again = Toy(folder, resume=True)
    output = capsys.readouterr().out
    assert output.startswith(f"{damaged} cannot be used, it is cut short or damaged (")
    assert output.count("\n") == 1
    assert again.fit()
    assert again.steps_taken == [8, 9, 10]
    assert again.state() == uninterrupted.state()
    assert log(folder) == log(tmp_path / "uninterrupted")
    assert checkpoints(folder) == checkpoints(tmp_path / "uninterrupted")


@pytest.mark.parametrize("content", DAMAGED)
def test_only_damaged_checkpoints_are_one_line(content, uninterrupted, tmp_path):
    for file in (tmp_path / "uninterrupted" / "checkpoints").iterdir():
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-00000008\.pt cannot be used") as caught:
        Toy(tmp_path / "uninterrupted", resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_networks_is_refused(uninterrupted, tmp_path):
    with pytest.raises(ValueError, match=r"holds \['fake', 'generator'\], this run trains \['teacher'\]"):
        Trainer(
            tmp_path / "uninterrupted",
            steps=3,
            updates={"teacher": NetworkOptimizer(nn.Linear(3, 2), lr=1.0, steps=3)},
            rng=torch.Generator(),
        ).restore()


@pytest.fixture
def full_disk(monkeypatch):
    """A function that fills the disk: from then on checkpoints are written to the kernel's full device."""
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's")
    save = torch.save

    def save_to_full(state, file):
        with open("/dev/full", "wb") as full:
            save(state, full)

    return lambda: monkeypatch.setattr(torch, "save", save_to_full)


def test_a_full_disk_is_named_and_leaves_the_checkpoints_before(tmp_path, full_disk):
    toy = Toy(tmp_path)

    def fill(step):
        if step == 6:
            toy.trainer.checkpoints.wait()
            full_disk()

    toy.before = fill
    with pytest.raises(OSError, match=r"checkpoints/step-00000008\.pt cannot be written: No space left on device$"):
        toy.fit()
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000004.pt"]


def test_metrics_are_one_json_object_per_line(uninterrupted, tmp_path):
    lines = (tmp_path / "uninterrupted" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10, 11]
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
