"""Augmentation: the labels describe what was done to the images."""

import math

import pytest
import torch

from dmdistill.data import augmentation
from dmdistill.data.augmentation import (
    AUGMENT_LABELS,
    GeometricAugmentation,
    HorizontalFlip,
    NoAugmentation,
    rotation,
    scaling,
    translation,
    warp,
)

ZOOM, TURN, STRETCH, SHIFT = 2, slice(3, 5), slice(5, 7), slice(7, 9)


@pytest.fixture
def x(rng):
    """Smooth images, 400 x 3 x 16 x 16, no two rows or columns alike."""
    coarse = torch.randn(400, 3, 4, 4, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic")


def test_no_augmentation_changes_nothing(x, rng):
    same, labels = NoAugmentation()(x, rng=rng)
    assert same is x
    assert labels is None


def test_half_of_the_images_are_mirrored_and_the_others_are_not(x, rng):
    found, labels = HorizontalFlip()(x, rng=rng)
    flipped = (found == x.flip(3)).flatten(1).all(1)
    kept = (found == x).flatten(1).all(1)
    assert torch.equal(flipped, ~kept)
    assert labels is None
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_at_probability_zero_only_left_and_right_change_and_the_network_is_told(x, rng):
    found, labels = GeometricAugmentation(0.0)(x, rng=rng)
    assert labels.shape == (400, AUGMENT_LABELS)
    across = labels[:, 0] == 1
    assert torch.equal(found[across], x[across].flip(3))
    assert torch.equal(found[~across], x[~across])
    assert not labels[:, 1:].any()
    assert across.double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_told_nothing_is_done_nothing(x, rng):
    """So a network that is given zeros generates images of the data."""
    found, labels = GeometricAugmentation(0.3)(x, rng=rng)
    nothing = ~labels.any(1)
    assert 20 < nothing.sum() < 100  # half of .85 x .7^4
    assert torch.equal(found[nothing], x[nothing])
    assert not (found[~nothing] == x[~nothing]).flatten(1).all(1).any()


def test_each_change_is_as_frequent_as_its_probability(rng):
    _, labels = GeometricAugmentation(0.3)(torch.zeros(20000, 1, 2, 2), rng=rng)
    rates = [
        (labels[:, part] != 0).reshape(20000, -1).any(1).double().mean().item()
        for part in (0, 1, ZOOM, TURN, STRETCH, SHIFT)
    ]
    assert rates == pytest.approx([0.5, 0.15, 0.3, 0.3, 0.3, 0.3], abs=0.015)
    drawn = labels[labels[:, ZOOM] != 0, ZOOM]
    assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((0, 1), abs=0.05)
    cosine, sine = labels[:, TURN].unbind(1)
    torch.testing.assert_close((cosine + 1) ** 2 + sine**2, torch.ones(20000))
    straight = (labels[:, 6] == 0) & (labels[:, 5] != 0)
    assert straight.double().mean().item() == pytest.approx(0.15, abs=0.015)  # half are stretched along a side


def blob(x, y, *, wide=0.2, tall=0.2, size=64):
    """Draw a Gaussian spot at (x, y) of an image whose middle is 0 and whose sides are 2 long: 1 1 H W."""
    places = (torch.arange(size) + 0.5) * 2 / size - 1
    return (-((places[None] - x) ** 2) / (2 * wide**2) - (places[:, None] - y) ** 2 / (2 * tall**2)).exp()[None, None]


def one(value):
    return torch.tensor([value])


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        (translation(one(-0.3), one(0.1)), blob(0.3, 0.2, wide=0.1, tall=0.2)),
        (scaling(one(1 / 1.5)), blob(0.0, 0.45, wide=0.15, tall=0.3)),
        (rotation(one(-math.pi / 2)), blob(-0.3, 0.0, wide=0.2, tall=0.1)),
        (scaling(one(1.25), one(0.8)), blob(0.0, 0.375, wide=0.08, tall=0.25)),
    ],
)
def test_a_spot_goes_where_it_should(back, expected):
    start = blob(0.0, 0.3, wide=0.1, tall=0.2)
    torch.testing.assert_close(warp(start, back, one(True)), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("part", "labels", "expected"),
    [
        (0, [1, 0, 0, 0, 0, 0, 0, 0, 0], {"x": -0.2, "y": 0.1}),
        (1, [0, 1, 0, 0, 0, 0, 0, 0, 0], {"x": 0.2, "y": -0.1}),
    ],
)
def test_mirrors_are_told_which(part, labels, expected, monkeypatch):
    """The first draw is of left and right, the second of up and down."""
    flips = iter([float(part == 0), float(part == 1)])
    monkeypatch.setattr(augmentation, "draw_flips", lambda n, probability, rng: one(next(flips)))
    found, drawn = GeometricAugmentation(0.0)(blob(0.2, 0.1), rng=torch.Generator())
    assert drawn.tolist() == [labels]
    torch.testing.assert_close(found, blob(**expected))


def test_what_is_told_describes_what_was_done(rng):
    """Spots' middles, after only zoom and shift, are where the labels say."""
    x = blob(0.15, -0.1, wide=0.1, tall=0.1).expand(600, -1, -1, -1)
    found, labels = GeometricAugmentation(0.3)(x, rng=rng)
    simple = ~labels[:, [0, 1, 3, 4, 5, 6]].any(1) & (labels[:, [ZOOM, 7, 8]].abs() < 1).all(1) & labels.any(1)
    assert simple.sum() > 20
    places = (torch.arange(64) + 0.5) / 32 - 1
    mass = found[simple, 0]
    middle = torch.stack([(mass.sum(dim) * places).sum(1) / mass.sum((1, 2)) for dim in (1, 2)], 1)
    zoom, shift = (0.2 * labels[simple, ZOOM]).exp2()[:, None], 0.25 * labels[simple, SHIFT]
    torch.testing.assert_close(middle, zoom * (torch.tensor([0.15, -0.1]) + shift), rtol=0, atol=0.02)


def test_the_seed_fixes_it(x):
    (a, labels), (b, same) = (GeometricAugmentation(0.5)(x, rng=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(labels, same)
