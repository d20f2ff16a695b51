"""Teachers of EDM's kind: `dmdistill teach`."""

import dataclasses
import json
import zipfile

import pytest
import torch
from PIL import Image

from dmdistill.commands.options import change
from dmdistill.commands.teach import command
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.models.load import load_teacher
from dmdistill.training.signals import TrainingStopped
from helpers.configs import CPU, configure
from helpers.runs import logged_values


def settings(data, out):
    """Six steps of a small network on images of 12 x 12."""
    return configure(
        TeachConfig,
        data=data,
        out=out,
        network=NetworkOptions(model_channels=16, channel_mult=(1,), num_blocks=1),
        steps=6,
        batch=4,
        warmup=2,
        ema_halflife=2.0,
        log_every=2,
        save_every=4,
        compute=CPU,
    )


def test_a_teacher_is_written_and_resumed_bit_for_bit(idx_folder, tmp_path, terminated, rng):
    complete, stopped = (settings(idx_folder, tmp_path / name) for name in ("complete", "stopped"))
    trained = command.teach(complete)
    loaded = load_teacher(str(complete.out))
    assert (loaded.shape, len(loaded.conditions), loaded.evaluations) == ((1, 12, 12), 10, 35)
    z, cond = loaded.sample_inputs(2, rng=rng)
    torch.testing.assert_close(loaded.images(z, cond), trained.images(z, cond), rtol=1e-4, atol=1e-4)

    calls = terminated(command, "denoising_loss", 3)
    with pytest.raises(TrainingStopped, match="15"):
        command.teach(stopped)
    command.teach(dataclasses.replace(stopped, resume=stopped.out))
    assert len(calls) == 6
    files = [config.out / "teacher" / "model.safetensors" for config in (complete, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert logged_values(complete.out) == logged_values(stopped.out)


@pytest.fixture
def pictures(tmp_path):
    """Writes coloured pictures of two sizes, below a folder, and returns it."""

    def write(name, *files):
        for number, file in enumerate(files):
            (path := tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (14 + number % 2, 12), (9 * number, 40, 200)).save(path)
        return tmp_path / name

    return write


@pytest.mark.parametrize("augment", [0.0, 0.5])
def test_pictures_without_classes_make_an_unconditional_teacher(augment, pictures, tmp_path, capsys, rng):
    config = settings(pictures("photos", "a.png", "b.jpg", "c.webp"), tmp_path / "run")
    command.teach(change(config, side=8, augment=augment))
    line = f"--data {tmp_path}/photos: 3 images of 3 x 8 x 8, no classes: the teacher is unconditional"
    assert line in capsys.readouterr().out.splitlines()
    teacher = load_teacher(str(config.out))
    assert (teacher.name, teacher.shape, teacher.conditions) == ("photos", (3, 8, 8), None)
    assert teacher.images(*teacher.sample_inputs(2, rng=rng)).shape == (2, 3, 8, 8)


def test_classes_are_those_of_the_folders_and_kept_with_the_teacher(pictures, tmp_path, capsys):
    config = settings(pictures("pets", "dog/a.png", "cat/b.png", "dog/c.png"), tmp_path / "run")
    command.teach(change(config, side=8))
    assert f"--data {tmp_path}/pets: 3 images of 3 x 8 x 8, 2 classes\n" in capsys.readouterr().out
    assert load_teacher(str(config.out)).conditions.names == ("cat", "dog")


def test_a_zip_has_the_labels_of_its_table(pictures, tmp_path):
    folder = pictures("plain", "a.png", "b.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 2], ["b.png", 0]]}))
    config = settings(tmp_path / "set.zip", tmp_path / "run")
    command.teach(change(config, side=12))
    assert load_teacher(str(config.out)).conditions.names == ("class 0", "class 1", "class 2")


def test_pictures_of_several_sizes_or_not_square_need_a_side(pictures, tmp_path):
    for files, match in ((("a.png", "b.png"), "--side brings all to one size"), (("a.png",), "--side crops them")):
        with pytest.raises(ValueError, match=match):
            command.teach(settings(pictures(f"{len(files)}", *files), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
