"""Full disks, read-only folders, damaged files, kills: a resumed run equals an uninterrupted one, bit for bit."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmdistill.commands.cli import main
from dmdistill.commands.distill import command
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_run
from dmdistill.data.pairs import make_pairs, open_pairs
from dmdistill.models.load import load_teacher
from helpers.configs import small_distillation
from helpers.runs import logged_values, skip_figures, student_bytes
from helpers.small_disk import small_disk


@pytest.fixture(autouse=True)
def one_line_errors(monkeypatch):
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


@pytest.fixture(scope="module")
def settings(tiny_teacher, tmp_path_factory):
    """A distillation of four steps that saves after each second one."""
    folder = tmp_path_factory.mktemp("runs")

    plain = {"pair_count": 6, "steps": 4, "batch": 3, "batch_reg": 2, "ema_halflives": (2.0,), "solver_steps": 2}
    plain |= {"teacher": str(tiny_teacher), "report_images": 4, "save_every": 2}
    return lambda name: small_distillation(out=folder / name, **plain)


@pytest.fixture(scope="module")
def complete(settings):
    """A run that nothing happened to."""
    config = settings("complete")
    with pytest.MonkeyPatch.context() as patch:
        skip_figures(patch)
        distill(config)
    return config


@pytest.fixture(scope="module")
def student(complete):
    """Its student's weights."""
    return student_bytes(complete.out)


def run_to_its_end(config):
    """Resume a run as a user does; start it where there is nothing to resume."""
    started = (config.out / "config.toml").exists()
    return distill(change(config, resume=config.out if started else None))


def run_with_error(config, monkeypatch, capsys):
    """Run the command, which must end with exit code 2 and leave no temporary file; its one line."""
    monkeypatch.setattr("dmdistill.commands.cli.parse", lambda _: ("distill", config))
    with pytest.raises(SystemExit) as end:
        main(["distill"])
    line = capsys.readouterr().err
    assert (end.value.code, line.count("\n")) == (2, 1), line
    assert [file for file in config.out.rglob("*") if file.name.startswith(".")] == []
    return line


@pytest.mark.parametrize(
    ("size", "what"),
    [(0, "config.toml"), (1700, "shard-00000.safetensors"), (6000, "step-00000002.pt")],
)
def test_a_run_stopped_by_a_full_disk_can_be_resumed(size, what, settings, student, monkeypatch, capsys):
    config = settings(f"full-{size}")
    with small_disk(size):
        line = run_with_error(config, monkeypatch, capsys)
    assert f"{what} cannot be written: " in line
    run_to_its_end(config)
    assert student_bytes(config.out) == student


@pytest.mark.parametrize("nth", [1, 2, 4, 5])
def test_a_full_disk_at_any_file_keeps_the_files_before_it(nth, settings, student, monkeypatch, capsys):
    """The disk is full at the n-th row of the log, of which half is written, or at the second checkpoint."""
    config, writes = settings(f"no-room-{nth}"), []

    class Full:
        """A file on a full disk."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            writes.append(text)
            self.file.write(text[: len(text) // 2] if len(writes) == nth else text)
            if len(writes) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a, **k: (Full if "a" in a else lambda f: f)(opened(self, *a, **k)))
        if nth == 5:  # the second checkpoint in place of a row of the log
            replace = os.replace
            patch.setattr(os, "replace", lambda a, b: no_room() if b.name == "step-00000004.pt" else replace(a, b))
        line = run_with_error(config, monkeypatch, capsys)
    assert "cannot be written: No space left on device" in line
    saved = [file.name for file in (config.out / "checkpoints").glob("step-*")]
    assert saved == ([] if nth <= 2 else ["step-00000002.pt"])
    run_to_its_end(config)
    assert student_bytes(config.out) == student


def no_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def read_only():
    """Copies a folder, read-only; for root too, who becomes another user until the end of the test."""
    user, folder = os.geteuid(), Path(tempfile.mkdtemp())

    def copy(content):
        shutil.copytree(content, folder / "copy")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if user == 0:
            os.seteuid(65534)
        return folder / "copy"

    yield copy
    os.seteuid(user)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_run_is_one_line(complete, read_only, monkeypatch, capsys):
    teacher = load_teacher(complete.teacher)
    monkeypatch.setattr(command, "load_teacher", lambda _, **__: teacher)
    folder = read_only(complete.out)
    monkeypatch.chdir(folder)
    config = change(complete, teacher="tiny", out=folder, resume=folder)  # its folder is another user's
    line = run_with_error(config, monkeypatch, capsys)
    assert line == f"dmdistill: {folder}/config.toml cannot be written: Permission denied\n"


def test_finished_pairs_in_a_read_only_folder_are_opened(complete, read_only):
    folder = read_only(complete.out)
    pairs = open_pairs(folder / "pairs")
    again = make_pairs(folder / "pairs", pairs.settings, draw=None, generate=None, batch=2, device=torch.device("cpu"))
    assert torch.equal(again[range(6)][1], pairs[range(6)][1])


@pytest.fixture(scope="module")
def evaluated(judged, settings):
    """The folder of a run with a feature extractor, and so with a best state, that nothing happened to."""
    config = change(settings("evaluated"), teacher=judged, evaluate_every=1, evaluate_images=20, lr=0.02)
    with pytest.MonkeyPatch.context() as patch:
        skip_figures(patch)
        distill(config)
    return config.out


def resume(folder):
    """Resume a run as `dmdistill distill --resume` does: the student's bytes, or the line of the error."""
    try:
        distill(from_run(DistillConfig, folder))
    except (ValueError, OSError) as error:
        return str(error)
    return student_bytes(folder)


FILES = ("pairs/pairs.json", "pairs/shard-*", "checkpoints/step-*", "checkpoints/best-*")


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("damage", ["flip", "flip again", "cut short", "empty", "foreign"])
def test_a_run_with_a_damaged_file_is_resumed_correctly_or_refused(pattern, damage, evaluated, tmp_path):
    """The checkpoint before replaces a damaged newest one; for every other file a line names it."""
    folder, rng = tmp_path / "run", random.Random(f"{pattern} {damage}")
    shutil.copytree(evaluated, folder)
    file = max(folder.glob(pattern))
    content = file.read_bytes()
    at = rng.randrange(len(content))
    damaged = {"cut short": content[:at], "empty": b"", "foreign": b"\xff\xd8 not what you think\n"}
    flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    file.write_bytes(damaged.get(damage, flipped))
    shutil.rmtree(folder / "student")
    outcome = resume(folder)
    if "step-" in pattern or isinstance(outcome, bytes):
        assert outcome == student_bytes(evaluated)
    else:
        assert str(file) in outcome or f"{file.parent} holds pairs of other settings" in outcome
        assert "\n" not in outcome


@pytest.mark.parametrize("left", ["no newline", "half a line", "nothing"])
def test_a_log_whose_last_line_is_incomplete_is_completed(left, complete, student, tmp_path):
    """Killed in step 4, while its row was written, before its checkpoint was."""
    folder = tmp_path / "run"
    shutil.copytree(complete.out, folder)
    log = folder / "metrics.jsonl"
    content = log.read_bytes()
    last = content[:-1].rindex(b"\n") + 1
    log.write_bytes(content[: {"no newline": -1, "half a line": (last + len(content)) // 2, "nothing": last}[left]])
    (folder / "checkpoints" / "step-00000004.pt").unlink()
    assert resume(folder) == student
    assert logged_values(folder) == logged_values(complete.out)


@pytest.mark.parametrize("line", [b"", b"{", b"[3]", b'{"seconds": 1}', b'{"step": "2"}', b"\xff\xd8"])
def test_a_line_of_the_log_that_is_no_row_is_named(line, complete, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(complete.out, folder)
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert f"{log}, line 2, is damaged" in resume(folder)


class Synchronizations(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waiting = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
        self.count += function.overloadpacket._qualified_op_name.removeprefix("aten::") in waiting
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("fake_steps", [1, 3])
def test_a_step_does_not_wait_for_the_device(fake_steps, settings, monkeypatch):
    """Once there is a checkpoint to return to; before, it waits to check that losses and gradients are finite."""
    config = change(settings(f"synchronizations-{fake_steps}"), fake_steps=fake_steps)
    iterate, counts = Distillation.iterate, []

    def count(self, step):
        with Synchronizations() as waits:
            losses = iterate(self, step)
        counts.append(waits.count)
        return losses

    monkeypatch.setattr(Distillation, "iterate", count)
    distill(config)
    evaluations = (
        3 + fake_steps + (fake_steps > 1)
    )  # G, mu_real and mu_fake for one update of G, mu_fake's own, fresh G
    updates = 1 + fake_steps
    checks = evaluations + updates
    assert counts == [checks, checks, 0, 0]


@pytest.mark.parametrize("runs", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_equals_an_uninterrupted_one(runs, judged, tmp_path):
    """kill -9 while pairs are made, in a step, while a file is written: student and log are the same bit for bit.

    Of 24 runs every second is killed once more while it is resumed: up to 36 kills.
    """
    process = subprocess.run(
        [sys.executable, Path(__file__).parent / "killed.py", judged, tmp_path, str(runs), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    print(process.stdout)
    assert [one["digest"] for one in result["killed"]] == [result["complete"]] * runs
    assert [one["left"] for one in result["killed"]] == [[]] * runs
    signals = [kill.split("signal ")[1] for one in result["killed"] for kill in one["kills"]]
    assert sum(number != "0" for number in signals) >= runs - 1, "few were killed before they were done"
