"""A model that is called gives the images that the existing functions sample from the same noise."""

from dataclasses import replace

import pytest
import torch

from dmdistill.commands.prompts import with_prompt_texts
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Student
from dmdistill.networks.song_unet import SongUNet
from helpers.configs import CPU
from helpers.tiny_models import save_student


@pytest.fixture
def student(tiny_teacher, tmp_path):
    return save_student(str(tiny_teacher), tmp_path / "student")


def expected(model, count, index, seed=0):
    """Images of the noise of a seed, with these conditions, in one batch."""
    z, _ = model.sample_noise(count, rng=torch.Generator().manual_seed(seed))
    return model.images(z, model.condition(None if index is None else torch.tensor(index)))


@pytest.mark.parametrize(
    ("asked", "count", "index"),
    [
        ({"labels": [3], "count": 8}, 8, [3] * 8),
        ({"labels": [7, 2, 5], "seed": 4}, 3, [7, 2, 5]),
        ({"labels": 7}, 1, [7]),
        ({"count": 12}, 12, [*range(10), 0, 1]),
        ({}, 1, [0]),
    ],
)
def test_a_student_and_a_teacher_draw_labels_in_turn(asked, count, index, student, tiny_teacher):
    for model in (student, replace(load_teacher(str(tiny_teacher)), steps=2)):
        images = model(**asked)
        assert (images.shape, images.dtype, images.requires_grad) == ((count, 1, 8, 8), torch.float32, False)
        assert torch.equal(images, expected(model, count, index, asked.get("seed", 0)))


def test_the_command_gives_the_same_images(student, tmp_path):
    config = SampleConfig(str(tmp_path / "student"), tmp_path / "x.png", count=70, labels=(7, 2), seed=3, compute=CPU)
    loaded = load_model(str(tmp_path / "student")).to(torch.device("cpu"))
    assert torch.equal(sample(config), loaded(labels=[7, 2], count=70, seed=3))
    names = [loaded.conditions.names[number] for number in (7, 2)]
    assert torch.equal(loaded(labels=names, seed=3), loaded(labels=[7, 2], seed=3))


def test_an_unconditional_model_is_drawn_from_noise_alone():
    network = SongUNet(img_resolution=8, in_channels=3, out_channels=3, model_channels=16, channel_mult=[1])
    alone = Student(name="alone", denoiser=EDMDenoiser(network.eval(), EDM()), shape=(3, 8, 8))
    assert torch.equal(alone(count=3), expected(alone, 3, None))
    with pytest.raises(ValueError, match="alone is unconditional: it takes no labels"):
        alone(labels=[0])


def test_prompts_are_encoded_and_taken_in_turn(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    student = save_student(str(tiny_pipeline("stable_diffusion")), tmp_path / "text")
    told = with_prompt_texts(student, ["a red square", "sky"])
    assert torch.equal(student("a red square", seed=5), expected(told, 1, [0], seed=5))
    images = student(["a red square", "sky"], count=3)
    assert torch.equal(images, expected(told, 3, [0, 1, 0]))
    assert images.shape[:2] == (3, 3)
    assert torch.equal(told(count=2), expected(told, 2, [0, 1]))  # the prompts that it has already
    for asked, match in (
        ({}, "give a prompt"),
        ({"prompts": " "}, "without words"),
        ({"labels": [1]}, "takes prompts"),
    ):
        with pytest.raises(ValueError, match=match):
            student(**asked)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"labels": [3, 10]}, "tiny-student has no class 10, expected 0 to 9"),
        ({"labels": [-1]}, "no class -1"),
        ({"labels": "gown"}, "no class gown"),
        ({"labels": []}, "0 images, expected at least 1"),
        ({"count": 0}, "0 images, expected at least 1"),
        ({"prompts": "a cat"}, "no text-to-image model: it takes no prompts"),
    ],
)
def test_what_a_model_of_classes_cannot_draw_is_refused(asked, match, student):
    with pytest.raises(ValueError, match=match):
        student(**asked)
