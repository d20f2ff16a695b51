"""Training sets: each image with its own label and augmentation."""

import torch

from dmdistill.data.augmentation import GeometricAugmentation, HorizontalFlip
from dmdistill.data.conditions import Labels
from dmdistill.data.image_tensors import LabelledImages, from_uint8
from dmdistill.data.training_set import AugmentedLabels, TrainingSet


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


def test_the_generator_fixes_them():
    a, b = (
        TrainingSet(data(), rng=torch.Generator().manual_seed(5), augmentation=GeometricAugmentation(0.5)).draw(9)
        for _ in range(2)
    )
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].augment, b[1].augment)
