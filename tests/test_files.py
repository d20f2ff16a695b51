"""Files and folders: whole or not at all, and in one process's hands at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmdistill.files import held_alone

HOLDING = """
import sys
from pathlib import Path
from dmdistill.files import held_alone
with held_alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Another process that holds a folder until its input ends."""
    started = []

    def hold(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDING, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_folder_is_one_processs_until_that_one_ends(holder, tmp_path, number):
    """However it ends; and a lock that a killed process left behind is none."""
    other = holder(tmp_path)
    with pytest.raises(ValueError, match="is in use by another process"), held_alone(tmp_path):
        pytest.fail("two hold it")
    other.send_signal(number)
    other.wait()
    assert (tmp_path / ".lock").exists() == (number == signal.SIGKILL)
    with held_alone(tmp_path), pytest.raises(ValueError, match="is in use"), held_alone(tmp_path):
        pytest.fail("two hold it")
    assert os.listdir(tmp_path) == []


def test_folders_beside_and_within_are_others(tmp_path):
    with held_alone(tmp_path), held_alone(tmp_path / "within"), held_alone(tmp_path.with_name("beside")):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    kept = [tmp_path / "config.toml", tmp_path / "checkpoints" / "step-1.pt", tmp_path / ".hidden"]
    left = [tmp_path / ".config.toml.12-34.tmp", tmp_path / "checkpoints" / ".step-2.pt.12-34.tmp"]
    for file in (*kept, *left, tmp_path / ".student-ab1.tmp" / "model.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    with held_alone(tmp_path):
        pass
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)


def test_where_the_system_has_no_locks_none_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with held_alone(tmp_path):
        assert os.listdir(tmp_path) == []


def test_what_is_not_of_ours_or_anothers_is_left(tmp_path):
    """A hidden file of the user's own, and what a run within this folder is writing."""
    mine, theirs = tmp_path / "sub" / ".precious.tmp", tmp_path / "run" / ".step-2.pt.77-88.tmp"
    for file in (mine, theirs):
        file.parent.mkdir()
        file.touch()
    with held_alone(tmp_path / "run"):
        theirs.touch()  # begun once the folder was held
        with held_alone(tmp_path):
            assert mine.exists()
            assert theirs.exists()
