"""A disk that is full ends an export with one line, whichever library was writing, and leaves nothing."""

import errno
import os

import pytest
from safetensors import SafetensorError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dmdistill.commands.export import command
from dmdistill.commands.export.write_errors import describe_folder_errors
from dmdistill.io.atomic import write_json
from helpers.small_disk import small_disk
from helpers.tiny_models import save_student, unet2d

SINGLE = ("--format", "single-file")


@pytest.fixture
def teachers(tmp_path, tiny_teacher, tiny_pipeline):
    """Sources of teachers by their kind."""
    unet = unet2d(tmp_path / "unet", diffusers.DDPMScheduler(beta_end=0.004))
    return {"own": tiny_teacher, "unet": unet, "sd": tiny_pipeline("stable_diffusion")}


@pytest.mark.parametrize(
    ("kind", "rank", "flags", "largest_file", "original"),
    [
        ("own", 0, (), 5_000, OSError),  # the source of our network
        ("own", 0, (), 60_000, SafetensorError),
        ("unet", 0, (), 8_000, SafetensorError),
        ("sd", 0, (), 100, OSError),  # the config of the scheduler
        ("sd", 0, (), 8_000, SafetensorError),
        ("sd", 2, (), 8_000, SafetensorError),
        ("sd", 0, SINGLE, 100, OSError),
        ("sd", 0, SINGLE, 8_000, SafetensorError),
        ("sd", 2, SINGLE, 8_000, SafetensorError),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_folder(
    kind, rank, flags, largest_file, original, teachers, tmp_path, error_line, monkeypatch
):
    save_student(str(teachers[kind]), tmp_path / "student", rank=rank)
    seen, out, before = [], tmp_path / "out", sorted(os.listdir(tmp_path))
    write = command.write_export

    def watch(*arguments):
        try:
            write(*arguments)
        except Exception as error:
            seen.append(type(error))
            raise

    monkeypatch.setattr(command, "write_export", watch)
    with small_disk(largest_file):
        line = error_line("export", tmp_path / "student", out, *flags)
    assert line == f"dmdistill: {out} cannot be written: File too large\n"
    assert seen == [original]
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_is_copied_is_named_as_its_folder(tmp_path, tiny_pipeline, error_line, monkeypatch):
    """Of components that are copied the system names both files."""
    save_student(str(tiny_pipeline("stable_diffusion")), tmp_path / "student")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr("shutil.copyfile", full)
    line = error_line("export", tmp_path / "student", tmp_path / "out")
    assert line == f"dmdistill: {tmp_path / 'out'} cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError(
            'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
        ),
    ],
)
def test_every_librarys_error_has_the_same_words(error, tmp_path):
    with (
        pytest.raises(OSError, match=r"/out cannot be written: No space left on device$"),
        describe_folder_errors(tmp_path / "out", tmp_path / "temporary"),
    ):
        raise error


def test_our_own_files_are_named_as_their_folder(tmp_path):
    with (
        pytest.raises(OSError, match=r"/out cannot be written: File too large$"),
        describe_folder_errors(tmp_path / "out", tmp_path),
        small_disk(10),
    ):
        write_json(tmp_path / "model_index.json", {"_class_name": "x"})


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/config.json"),
        OSError("/elsewhere/file cannot be written: No space left on device"),
        OSError("no file named model.safetensors found in directory teacher"),
        SafetensorError("Error while deserializing header: header too large"),
    ],
)
def test_errors_of_other_files_stay_as_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, describe_folder_errors(tmp_path / "out", tmp_path / "temporary"):
        raise error
    assert caught.value is error
