"""Training sets: each image with its own label and augmentation."""

import pytest
import torch

from dmdistill.core.noise import RandomNoise
from dmdistill.core.partition import SharedNoise
from dmdistill.core.samples import Samples
from dmdistill.data.augmentation import GeometricAugmentation, HorizontalFlip
from dmdistill.data.conditions import Labels
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.data.training_set import AugmentedLabels, SampleAugmentation, TrainingSet


def data(count=12):
    """Images 2 x 3 x 5 of one grey each, which is their number; labels of 0 to 3."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 2, 3, 5)
    return LabelledImages(images, torch.arange(count) % 4, tuple("abcd"))


def test_every_image_is_drawn_with_its_label(rng):
    x, cond = TrainingSet(data(), rng=rng).draw(600)
    assert (x.shape, x.dtype, type(cond)) == ((600, 2, 3, 5), torch.float32, Labels)
    numbers = ((x[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert torch.equal(x, from_uint8(data().images)[numbers])
    assert torch.equal(cond.one_hot.argmax(1), numbers % 4)
    assert (numbers.bincount(minlength=12) > 25).all()


def test_labels_are_dropped_with_their_probability(rng):
    _, cond = TrainingSet(data(), rng=rng, label_dropout=0.25).draw(4000)
    assert abs((cond.one_hot.sum(1) == 0).double().mean().item() - 0.25) < 0.03


def test_augmentation_labels_come_with_the_labels(rng):
    _, cond = TrainingSet(data(), rng=rng, augmentation=GeometricAugmentation(0.5)).draw(7)
    assert isinstance(cond, AugmentedLabels)
    assert (cond.one_hot.shape, cond.augment.shape) == ((7, 4), (7, 9))
    _, cond = TrainingSet(data(), rng=rng, augmentation=HorizontalFlip()).draw(7)
    assert type(cond) is Labels


def test_images_without_classes_have_no_labels(rng):
    images = LabelledImages(data().images, torch.zeros(12, dtype=torch.int64), ())
    assert TrainingSet(images, rng=rng, label_dropout=0.5).draw(7)[1] is None
    _, cond = TrainingSet(images, rng=rng, augmentation=GeometricAugmentation(0.5)).draw(7)
    assert (cond.one_hot.shape, cond.augment.shape) == ((7, 0), (7, 9))


def test_the_generator_fixes_them():
    a, b = (
        TrainingSet(data(), rng=torch.Generator().manual_seed(5), augmentation=GeometricAugmentation(0.5)).draw(9)
        for _ in range(2)
    )
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].augment, b[1].augment)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_losss_samples_are_augmented_alike_in_any_number_of_parts(labelled, rng):
    """As `GeometricAugmentation` changes them, with the labels of class beside the others."""
    x, one_hot = torch.rand(8, 3, 8, 8, generator=rng), torch.eye(4).repeat(2, 1)
    augment, drawn = SampleAugmentation(GeometricAugmentation(0.5)), lambda: torch.Generator().manual_seed(3)
    samples = Samples(x, Labels(one_hot) if labelled else None, 8)
    found = augment(samples, RandomNoise(drawn()))
    changed, labels = GeometricAugmentation(0.5)(x, rng=drawn())
    assert torch.equal(found.x, changed)
    assert torch.equal(found.cond.augment, labels)
    assert torch.equal(found.cond.one_hot, one_hot if labelled else torch.zeros(8, 0))
    shared = SharedNoise(drawn(), parts=2, count=2)
    parts = [augment(half, noise) for half, noise in zip(samples.chunks(4), shared.parts, strict=True)]
    torch.testing.assert_close(torch.cat([part.x for part in parts]), changed)
    assert torch.equal(torch.cat([part.cond.augment for part in parts]), labels)
