"""Files and folders: in full or not at all, and of one process at a time."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from dmdistill.io.atomic import atomic_write, read_json, read_safetensors, write_safetensors
from dmdistill.io.folders import exclusive_folder, new_folder, writable_cache_folder
from helpers.small_disk import small_disk

HOLDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored
from pathlib import Path
from dmdistill.io.folders import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
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
    with pytest.raises(ValueError, match="is in use by another process"), exclusive_folder(tmp_path):
        pytest.fail("two hold it")
    other.send_signal(number)
    other.wait()
    assert (tmp_path / ".lock").exists() == (number == signal.SIGKILL)
    with exclusive_folder(tmp_path), pytest.raises(ValueError, match="is in use"), exclusive_folder(tmp_path):
        pytest.fail("two hold it")
    assert os.listdir(tmp_path) == []


def test_folders_beside_and_within_are_others(tmp_path):
    with (
        exclusive_folder(tmp_path),
        exclusive_folder(tmp_path / "within"),
        exclusive_folder(tmp_path.with_name("beside")),
    ):
        pass


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    kept = [tmp_path / "config.toml", tmp_path / "checkpoints" / "step-1.pt", tmp_path / ".hidden"]
    left = [tmp_path / ".config.toml.12-34.tmp", tmp_path / "checkpoints" / ".step-2.pt.12-34.tmp"]
    for file in (*kept, *left, tmp_path / ".student-ab1.tmp" / "model.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    with exclusive_folder(tmp_path):
        pass
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)


def test_a_file_system_without_locks_needs_none(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive_folder(tmp_path):
        (tmp_path / "file").touch()
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    """Root writes everywhere: the error comes from the open call."""
    monkeypatch.setattr(FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "")))
    with exclusive_folder(tmp_path):
        assert os.listdir(tmp_path) == []


def test_files_of_others_are_left(tmp_path):
    """A hidden file of the user's own, and what a run within this folder is writing."""
    mine, theirs = tmp_path / "sub" / ".precious.tmp", tmp_path / "run" / ".step-2.pt.77-88.tmp"
    for file in (mine, theirs):
        file.parent.mkdir()
        file.touch()
    with exclusive_folder(tmp_path / "run"):
        theirs.touch()  # begun once the folder was held
        with exclusive_folder(tmp_path):
            assert mine.exists()
            assert theirs.exists()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []

    def record(name, original, *given):
        done.append(name)
        return original(*given)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, partial(record, name, getattr(os, name)))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert done == ["fsync", "replace"]


def test_no_flipped_bit_of_tensors_goes_undetected(tmp_path):
    """Of 300 single flips anywhere in the file each is found, or changes nothing; others read it as ever."""
    tensors = {"a": torch.randn(5, 3), "b": torch.arange(7)}
    file, rng = tmp_path / "tensors.safetensors", random.Random(0)
    write_safetensors(file, tensors)
    content, found = file.read_bytes(), 0
    assert all(torch.equal(load_file(file)[name], tensor) for name, tensor in tensors.items())
    for _ in range(300):
        at = rng.randrange(8 * len(content))
        file.write_bytes(content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :])
        try:
            read = read_safetensors(file)
        except ValueError as error:
            assert str(error).startswith(f"{file} is truncated, damaged or not a safetensors file: ")  # noqa: PT017
            found += 1
        else:
            assert read.keys() == tensors.keys(), f"byte {at // 8}, bit {at % 8}"
            assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert found > 200, "most flips are found"


def test_a_checksum_whose_name_is_damaged_is_one(tmp_path):
    file = tmp_path / "tensors.safetensors"
    write_safetensors(file, {"a": torch.ones(3)})
    file.write_bytes(file.read_bytes().replace(b"crc32", b"crc30").replace(b"\x80?", b"\x00@"))
    with pytest.raises(ValueError, match="checksum is damaged"):
        read_safetensors(file)
    save_file({"a": torch.ones(3)}, file, metadata={"format": "pt", "title": "a model"})  # others have none
    assert read_safetensors(file)["a"].tolist() == [1, 1, 1]


def test_equal_tensors_make_equal_files(tmp_path):
    for name in "abcdef":
        write_safetensors(tmp_path / name, {"x": torch.ones(3), "y": torch.zeros(2)})
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_a_new_folder_appears_in_full_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "file").write_text("full")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "file").read_text() == "full"

    def fail(folder):
        (folder / "file").touch()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), new_folder(tmp_path / "b") as folder:
        fail(folder)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a", "file", "out"]


def test_a_new_folder_keeps_the_hidden_files_of_an_empty_one(tmp_path, monkeypatch):
    """A fresh git repository, also by a link, and as the current folder."""
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "link").symlink_to("repository")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert sorted(os.listdir(tmp_path / "repository")) == [".git", "file"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path()) as folder:
        (folder / "part").mkdir()
    assert os.listdir() == ["part"]
    assert sorted(os.listdir(tmp_path)) == ["here", "link", "repository"]


@pytest.mark.parametrize("name", ["file", "full"])
def test_what_exists_is_no_new_folder(name, tmp_path):
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "file", tmp_path / "full" / "mine"):
        file.write_text("mine")
    with pytest.raises(ValueError, match=f"{name} already exists"), new_folder(tmp_path / name):
        pytest.fail("it is written to")
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


FILLING = """
import sys
from pathlib import Path
from dmdistill.io.folders import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_new_folder_of_a_killed_process_is_begun_again(tmp_path):
    """While that process lives it is in use."""
    command = [sys.executable, "-c", FILLING, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="out is in use by another process"), new_folder(tmp_path / "out"):
            pytest.fail("two fill it")
        other.kill()
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    with new_folder(tmp_path / "out") as folder:
        assert os.listdir(folder) == []
        (folder / "file").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["file"]


def test_a_new_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="out cannot be written"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("it is written to")


def save(temporary):
    with temporary.open("wb") as file:
        torch.save({"x": torch.zeros(5000)}, file)


WRITERS = {"torch.save": save, "bytes": lambda temporary: temporary.write_bytes(bytes(9000))}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_by_the_operating_systems_words(writer, tmp_path):
    """torch.save's own words are of its zip writer."""
    with (
        small_disk(5000),
        pytest.raises(OSError, match="/x cannot") as caught,
        atomic_write(tmp_path / "x") as temporary,
    ):
        WRITERS[writer](temporary)
    assert str(caught.value) == f"{tmp_path}/x cannot be written: File too large"
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    assert writable_cache_folder("prompts") == tmp_path / "cache" / "prompts"
    (tmp_path / "cache").touch()
    folder = writable_cache_folder("prompts")
    (folder / "file").touch()
    assert not folder.is_relative_to(tmp_path)
    code = "from dmdistill.io.folders import writable_cache_folder\nprint(writable_cache_folder('prompts'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()


def test_other_errors_of_a_writer_stay_themselves(tmp_path):
    with pytest.raises(RuntimeError, match="one of its own"), atomic_write(tmp_path / "x"):
        raise RuntimeError("one of its own")


@pytest.mark.parametrize("read", [read_json, read_safetensors])
def test_a_pipe_is_no_file(read, tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="x is no file"):
        read(tmp_path / "x")
    with pytest.raises(ValueError, match="y does not exist"):
        read(tmp_path / "y")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "\ufeff{}", "{", ""])
def test_what_is_no_json_is_named(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not JSON") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_file_of_tensors_is_in_memory_once_while_it_is_written(tmp_path):
    """Beside the tensors themselves."""
    tensors = {"a": torch.rand(4_000_000), "b": torch.rand(3, 5)}
    write_safetensors(tmp_path / "first.safetensors", tensors)  # imports
    tracemalloc.start()
    write_safetensors(tmp_path / "second.safetensors", tensors)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.1 * tensors["a"].nbytes
    assert torch.equal(read_safetensors(tmp_path / "second.safetensors")["a"], tensors["a"])
