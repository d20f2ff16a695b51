"""What happens to a run from outside: full disks, read-only folders. The run that goes on is as if nothing had been."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmdistill.commands.cli import main
from dmdistill.commands.distill import command as distilling
from dmdistill.commands.distill import report as reporting
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.presets import with_run
from dmdistill.data.pairs import make_pairs, open_pairs
from dmdistill.models.load import load_teacher
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import configure

MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Curves and timings take most of a run this small."""
    for name in ("draw_curves", "draw_comparison"):
        monkeypatch.setattr(reporting, name, lambda *_, **__: None)
    monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


@pytest.fixture(scope="module")
def settings(tiny_teacher, tmp_path_factory):
    """A distillation of four steps that saves after each second one."""
    folder = tmp_path_factory.mktemp("runs")

    def build(name):
        return configure(
            DistillConfig,
            teacher=str(tiny_teacher),
            out=folder / name,
            pair_count=6,
            steps=4,
            batch=3,
            batch_reg=2,
            warmup=2,
            ema_halflives=(2.0,),
            log_every=1,
            sample_every=3,
            evaluate_every=3,
            report_images=4,
            save_every=2,
            ode=SolverOptions(solver_steps=2),
            compute=MACHINE,
        )

    return build


@pytest.fixture(scope="module")
def whole(settings):
    """The student of a run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        without_pictures.__wrapped__(patch)
        distilling.distill(settings("whole"))
    return save_student(settings("whole").out)


def save_student(folder):
    return (folder / "student" / "model.safetensors").read_bytes()


def run_to_its_end(config):
    """As a user does: go on with what is there, begin where there is nothing to go on with."""
    there = (config.out / "config.toml").exists()
    return distilling.distill(change(config, resume=config.out if there else None))


def fails_in_a_line(config, monkeypatch, capsys):
    """The command ends by an error of one line, exit code 2, and leaves nothing half-written; the line."""
    monkeypatch.setattr("dmdistill.commands.cli.parse", lambda _: config)
    with pytest.raises(SystemExit) as end:
        main([])
    line = capsys.readouterr().err
    assert (end.value.code, line.count("\n")) == (2, 1), line
    assert [file for file in config.out.rglob("*") if file.name.startswith(".")] == []
    return line


@pytest.fixture
def largest_file():
    """Sets how many bytes a file may have: as on a disk that is full, writing more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "what"),
    [(0, "config.toml"), (1000, "shard-00000.safetensors"), (6000, "step-00000002.pt")],
)
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    size, what, settings, whole, largest_file, monkeypatch, capsys
):
    config = settings(f"full-{size}")
    largest_file(size)
    line = fails_in_a_line(config, monkeypatch, capsys)
    largest_file(None)
    assert f"{what} cannot be written: " in line
    run_to_its_end(config)
    assert save_student(config.out) == whole


@pytest.mark.parametrize("nth", [1, 2, 4, 5])
def test_no_room_at_any_file_keeps_the_ones_before_it(nth, settings, whole, monkeypatch, capsys):
    """The n-th checkpoint or line of the log meets a full disk; half the line is there."""
    config, asked = settings(f"no-room-{nth}"), []

    class Full:
        """A file on a full disk."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            asked.append(text)
            self.file.write(text[: len(text) // 2] if len(asked) == nth else text)
            if len(asked) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a, **k: (Full if "a" in a else lambda f: f)(opened(self, *a, **k)))
        if nth == 5:  # no line of the log but the second checkpoint
            replace = os.replace
            patch.setattr(os, "replace", lambda a, b: no_room() if b.name == "step-00000004.pt" else replace(a, b))
        line = fails_in_a_line(config, monkeypatch, capsys)
    assert "cannot be written: No space left on device" in line
    saved = [file.name for file in (config.out / "checkpoints").glob("step-*")]
    assert saved == ([] if nth <= 2 else ["step-00000002.pt"])
    run_to_its_end(config)
    assert save_student(config.out) == whole


def no_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def read_only():
    """Takes the right to write in a folder; of root too, by being someone else until the end of the test."""
    user, folder = os.geteuid(), Path(tempfile.mkdtemp())

    def take(content):
        shutil.copytree(content, folder / "copy")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if user == 0:
            os.seteuid(65534)
        return folder / "copy"

    yield take
    os.seteuid(user)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_run_is_refused_in_a_line(settings, whole, read_only, monkeypatch, capsys):
    teacher = load_teacher(settings("whole").teacher)
    monkeypatch.setattr(distilling, "load_teacher", lambda _: teacher)
    folder = read_only(settings("whole").out)
    line = fails_in_a_line(change(settings("whole"), out=folder, resume=folder), monkeypatch, capsys)
    assert line == f"dmdistill: {folder}/config.toml cannot be written: Permission denied\n"


def test_finished_pairs_in_a_read_only_folder_are_opened(settings, whole, read_only):
    folder = read_only(settings("whole").out)
    made = open_pairs(folder / "pairs")
    again = make_pairs(folder / "pairs", made.settings, draw=None, generate=None, batch=2, device=torch.device("cpu"))
    assert torch.equal(again[range(6)][1], made[range(6)][1])


@pytest.fixture(scope="module")
def done(judged, settings):
    """A run with a judge, and so with a best state, that nothing happened to."""
    config = settings("judged")
    config = change(config, teacher=judged, evaluate_every=1, evaluate_images=20, lr=0.02)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures.__wrapped__(patch)
        distilling.distill(config)
    return config.out


def resumed(folder):
    """As by `dmdistill distill --resume`: the bytes of the student, or the line that says why there is none."""
    try:
        distilling.distill(with_run(DistillConfig(), folder))
    except (ValueError, OSError) as error:
        return str(error)
    return save_student(folder)


READ = ("pairs/pairs.json", "pairs/shard-*", "checkpoints/step-*", "checkpoints/best-*")


@pytest.mark.parametrize("pattern", READ)
@pytest.mark.parametrize("damage", ["flip", "flip again", "cut short", "empty", "foreign"])
def test_whatever_file_is_spoilt_a_resumed_run_is_right_or_refused(pattern, damage, done, tmp_path):
    """In place of a damaged newest checkpoint the one before is used; of all else a line names what is spoilt."""
    folder, rng = tmp_path / "run", random.Random(f"{pattern} {damage}")
    shutil.copytree(done, folder)
    file = max(folder.glob(pattern))
    content = file.read_bytes()
    at = rng.randrange(len(content))
    spoilt = {"cut short": content[:at], "empty": b"", "foreign": b"\xff\xd8 not what you think\n"}
    flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    file.write_bytes(spoilt.get(damage, flipped))
    shutil.rmtree(folder / "student")
    outcome = resumed(folder)
    if "step-" in pattern or isinstance(outcome, bytes):
        assert outcome == save_student(done)
    else:
        assert str(file) in outcome or f"{file.parent} holds pairs of other settings" in outcome
        assert "\n" not in outcome


@pytest.mark.parametrize("left", ["no newline", "half a line", "nothing"])
def test_a_log_cut_short_in_its_last_line_is_as_whole(left, settings, whole, tmp_path):
    """Killed in step 4, while its line was written, before its checkpoint was."""
    folder = tmp_path / "run"
    shutil.copytree(settings("whole").out, folder)
    log = folder / "metrics.jsonl"
    content = log.read_bytes()
    last = content[:-1].rindex(b"\n") + 1
    log.write_bytes(content[: {"no newline": -1, "half a line": (last + len(content)) // 2, "nothing": last}[left]])
    (folder / "checkpoints" / "step-00000004.pt").unlink()
    assert resumed(folder) == whole
    rows = [[{**row, "seconds": 0} for row in read_metrics(one)] for one in (folder, settings("whole").out)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("line", [b"", b"{", b"[3]", b'{"seconds": 1}', b'{"step": "2"}', b"\xff\xd8"])
def test_a_line_of_the_log_that_is_no_row_is_named(line, settings, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(settings("whole").out, folder)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert f"{log}, line 2, is damaged" in resumed(folder)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: the values it asks for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        asked = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
        self.count += function.overloadpacket._qualified_op_name.removeprefix("aten::") in asked
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("fake_steps", [1, 3])
def test_a_step_asks_the_device_for_nothing(fake_steps, settings, monkeypatch):
    """Once there is a checkpoint to go back to; before, it asks whether each loss and gradient is finite."""
    config = change(settings(f"waits-{fake_steps}"), fake_steps=fake_steps)
    iterate, counts = distilling.Job.iterate, []

    def counted(self, step):
        with Waits() as waits:
            losses = iterate(self, step)
        counts.append(waits.count)
        return losses

    monkeypatch.setattr(distilling.Job, "iterate", counted)
    distilling.distill(config)
    careful = 2 + 2 * fake_steps + 1  # two losses of the generator and its gradient; one and one of the fake score
    assert counts == [careful, careful, 0, 0]


@pytest.mark.parametrize("runs", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_gone_on_with_it_is_as_never_killed(runs, judged, tmp_path):
    """kill -9 while pairs are made, in a step, while a file is written: student and log are the same bit for bit.

    Of 24 runs every second is killed once more while it goes on: up to 36 kills.
    """
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "killed.py", judged, tmp_path, str(runs), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(done.stdout)
    assert [one["digest"] for one in told["killed"]] == [told["whole"]] * runs
    assert [one["left"] for one in told["killed"]] == [[]] * runs
    signals = [kill.split("signal ")[1] for one in told["killed"] for kill in one["kills"]]
    assert sum(number != "0" for number in signals) >= runs - 1, "few were killed before they were done"
