"""A model's images by number: noise and condition are functions of the seed and the number."""

import dataclasses

import pytest
import torch

from dmdistill.commands.evaluate.generated_images import (
    GeneratedImages,
    batch_ranges,
    generate_images,
    generator_inputs,
)
from dmdistill.data.image_tensors import center_crop_batch, to_uint8
from dmdistill.data.seeds import derive_seed
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Student


@pytest.fixture
def teacher(tiny_teacher):
    return dataclasses.replace(load_teacher(str(tiny_teacher)), steps=2)


def test_noise_and_class_do_not_depend_on_the_batch(teacher):
    z, cond = generator_inputs(teacher, range(23), seed=4)
    for batch in (1, 7, 22):
        parts = [generator_inputs(teacher, rows, seed=4) for rows in batch_ranges(23, batch)]
        assert torch.equal(torch.cat([part for part, _ in parts]), z)
        assert torch.equal(torch.cat([one.one_hot for _, one in parts]), cond.one_hot)
    assert torch.equal(generator_inputs(teacher, range(5, 9), seed=4)[0], z[5:9])


def test_noise_is_normal_and_of_no_other_image_or_seed(teacher):
    z, cond = generator_inputs(teacher, range(3000), seed=0)
    flat = z.flatten(1).double()
    assert abs(flat.mean()) < 4 / flat.numel() ** 0.5
    assert abs(flat.var() - 1) < 4 * (2 / flat.numel()) ** 0.5
    alike = torch.corrcoef(flat[:300])[~torch.eye(300, dtype=torch.bool)]
    assert alike.abs().max() < 6 / flat.shape[1] ** 0.5
    counts = cond.one_hot.sum(0)
    assert ((counts - 300).abs() < 4 * 300**0.5).all()
    assert not torch.isclose(generator_inputs(teacher, range(3), seed=1)[0], z[:3]).any()
    shard = torch.randn(z[0].shape, generator=torch.Generator().manual_seed(derive_seed(0, 2)))
    assert not torch.equal(shard, z[2])  # that of pairs


def test_prompts_take_their_turns(teacher):
    prompted = dataclasses.replace(teacher, text=object())
    _, cond = generator_inputs(prompted, range(17, 31), seed=0)
    assert cond.one_hot.argmax(1).tolist() == [i % 10 for i in range(17, 31)]


def test_images_of_a_range_are_those_of_the_model_rounded(teacher):
    source = GeneratedImages(teacher, 11, seed=2)
    images = torch.cat(list(generate_images(teacher, 11, batch=4, seed=2)))
    found = source.images(range(3, 9))
    assert (found.dtype, source.shape, len(source)) == (torch.uint8, (1, 8, 8), 11)
    assert (found.int() - to_uint8(images)[3:9].int()).abs().max() <= 1
    small = GeneratedImages(teacher, 11, seed=2, side=5)
    assert small.shape == (1, 5, 5)
    assert torch.equal(small.images(range(3, 9)), center_crop_batch(found, 5))


def test_digests_follow_a_students_steps(teacher):
    student = Student.from_teacher(teacher, teacher.denoiser, {"name": "student"})
    steps = [((), "sde"), ((80.0, 2.5), "sde"), ((80.0, 2.5), "ode"), ((80.0, 1.5), "sde")]
    students = [dataclasses.replace(student, timesteps=times, transition=transition) for times, transition in steps]
    assert len({GeneratedImages(one, 11, seed=2).digest() for one in students}) == 4


def test_digests_follow_what_decides_the_images(teacher):
    source = GeneratedImages(teacher, 11, seed=2)
    others = [
        GeneratedImages(teacher, 12, seed=2),
        GeneratedImages(teacher, 11, seed=3),
        GeneratedImages(teacher, 11, seed=2, side=4),
        GeneratedImages(dataclasses.replace(teacher, steps=3), 11, seed=2),
    ]
    assert len({source.digest(), *(other.digest() for other in others)}) == 5
    assert source.digest() == GeneratedImages(teacher, 11, seed=2).digest()
    before = source.digest()
    next(teacher.network.parameters()).data += 1
    assert source.digest() != before
