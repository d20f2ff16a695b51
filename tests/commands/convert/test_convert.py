"""`dmdistill convert`: EDM's checkpoint becomes a folder, which is the same teacher."""

import dataclasses
import os
import re

import pytest
import torch
from torch import nn

from dmdistill.commands.cli import main
from dmdistill.data.image_sources import open_images
from dmdistill.data.prompt_files import read_prompts
from dmdistill.io.weights import bundled_models
from dmdistill.models.load import load_teacher
from dmdistill.networks.song_unet import SongUNet
from helpers.killed_command import run_killed

KWARGS = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 30, "num_blocks": 1}
KWARGS |= {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}


@pytest.fixture
def checkpoint(edm, tmp_path):
    torch.manual_seed(0)
    network = SongUNet(**KWARGS)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return edm.write(tmp_path / "mine.pkl", network, KWARGS)


def test_a_checkpoint_becomes_a_folder(checkpoint, tmp_path, capsys, rng):
    (tmp_path / "empty").mkdir()
    main(["convert", str(checkpoint), str(tmp_path / "empty")])
    assert "mine: 0.1 MB of fp32 weights" in capsys.readouterr().out
    models = [dataclasses.replace(load_teacher(str(tmp_path / name)), steps=2) for name in ("mine.pkl", "empty")]
    z, cond = models[0].sample_inputs(3, rng=rng)
    assert torch.equal(*(model.images(z, cond) for model in models))
    card = (tmp_path / "empty" / "README.md").read_text()
    assert "Conditioned on 30 classes: class 0, class 1, class 2, ..., class 29." in card
    assert "mine.pkl" in card


def test_the_code_of_a_card_draws_with_the_model_beside_it(checkpoint, tmp_path, monkeypatch):
    """A folder has any name: the card says where to put its own."""
    monkeypatch.chdir(tmp_path)
    main(["convert", str(checkpoint), "somewhere"])
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "somewhere" / "README.md").read_text(), flags=re.S)
    names = {}
    exec(code.replace("path/to/this/folder", "somewhere"), names)
    assert names["model"].name == "mine"
    assert names["images"].shape == (64, 3, 8, 8)
    assert (tmp_path / "images.png").is_file()


@pytest.mark.parametrize("name", ["fashion", "fashion-student"])
def test_the_code_of_a_bundled_card_has_its_name(name):
    assert f'load_model("{name}")' in (bundled_models()[name] / "README.md").read_text(encoding="utf-8")


def test_half_precision_is_asked_for(checkpoint, tmp_path):
    for store in ("fp32", "fp16"):
        main(["convert", str(checkpoint), str(tmp_path / store), "--save-dtype", store])
    sizes = [(tmp_path / store / "model.safetensors").stat().st_size for store in ("fp16", "fp32")]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("place", ["full", "file"])
def test_nothing_is_overwritten(place, checkpoint, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "full" / "mine.txt", tmp_path / "file"):
        file.write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["convert", str(checkpoint), str(tmp_path / place)])
    assert end.value.code == 2
    assert f"{tmp_path / place} already exists" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_refused_file_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "bad.pkl"), str(tmp_path / "out")])
    assert end.value.code == 2
    assert "asks for 'posix.system', which is never run or imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_tells_of_a_checkpoint(checkpoint, capsys):
    main(["info", str(checkpoint)])
    assert "class 0, class 1, class 2, ..., class 29" in capsys.readouterr().out


def test_a_killed_conversion_does_not_block_the_next(checkpoint, tmp_path):
    """Killed while it writes config.json, the weights are already there; the next call leaves nothing else."""
    run_killed("dmdistill.models.folder.write_json", "convert", checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    main(["convert", str(checkpoint), str(tmp_path / "out")])
    assert load_teacher(str(tmp_path / "out")).name == "mine"
    assert sorted(os.listdir(tmp_path)) == ["mine.pkl", "out"]


def test_captions_of_fashion_mnist_become_a_set_of_images_or_a_list(idx_folder, tmp_path, capsys):
    for name in ("captioned.zip", "captions.txt"):
        main(["convert", "fashion-captions", str(tmp_path / name), "--data", f"{idx_folder}:test"])
        assert "60 captions" in capsys.readouterr().out
    images = open_images(str(tmp_path / "captioned.zip"))
    assert sorted(images.captions) == sorted(read_prompts(tmp_path / "captions.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captioned.png"], "expected a name ending in .zip or .txt"),
        (["there.zip"], "there.zip already exists"),
        (["new.zip", "--data", "nowhere"], "nowhere"),
    ],
)
def test_captions_that_cannot_be_written_are_refused(arguments, message, idx_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zip").touch()
    data = [] if "--data" in arguments else ["--data", str(idx_folder)]
    with pytest.raises(SystemExit) as end:
        main(["convert", "fashion-captions", *arguments, *data])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new.zip").exists()
