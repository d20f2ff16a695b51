import pytest
import torch

from dmdistill.metrics.accumulate import FeatureAccumulator, describe
from dmdistill.metrics.inception_score import ClassScores


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Pixels:
    """Features that are the pixels, and a fifth as many classes."""

    id, name = "pixels-1", "pixels"

    def __call__(self, images):
        return images.float().flatten(1)

    def classify(self, images):
        features = self(images)
        return features, features.unflatten(1, (-1, 5)).mean(2).softmax(1)


class Blind:
    id, name = "blind-1", "blind"

    def __call__(self, images):
        return images.float().flatten(1)


def gathered(features, *, keep, size=64, seed=0):
    gathering, generator = FeatureAccumulator("pixels-1", "pixels", keep), rng(seed)
    for batch in features.split(size):
        gathering.add(batch, rng=generator)
    return gathering


def test_what_is_kept_does_not_depend_on_batches():
    x = draw(500, 6)
    whole = gathered(x, keep=70, size=500)
    for size in (1, 9, 200):
        assert torch.equal(gathered(x, keep=70, size=size).features, whole.features)
    assert len(whole.features) == 70
    assert len({tuple(row) for row in whole.features.tolist()} & {tuple(row) for row in x.tolist()}) == 70


def test_all_are_kept_as_likely():
    """Of a sorted set, as folders by class are, the sample's mean is the set's within its own error."""
    x = torch.linspace(0, 1, 2000)[:, None]
    means = torch.stack([gathered(x, keep=50, seed=seed).features.mean() for seed in range(100)])
    assert abs(float(means.mean()) - 0.5) < 4 * float(means.std()) / 10
    assert float(means.std()) == pytest.approx((1 / 12 / 50) ** 0.5, rel=0.25)


def test_fewer_than_asked_are_all_kept():
    x = draw(30, 6)
    assert torch.equal(gathered(x, keep=100).features.sort(0).values, x.sort(0).values)
    assert gathered(x, keep=0).description().features is None


def test_shares_of_processes_add():
    x = draw(500, 6)
    first, second = gathered(x[:200], keep=70), gathered(x[200:], keep=70, seed=1)
    first.add_clip(torch.tensor([10.0, 20.0]))
    second.add_clip(torch.tensor([60.0]))
    both = (first + second).description()
    assert both.statistics.count == 500
    torch.testing.assert_close(both.statistics.mean, x.double().mean(0))
    assert both.clip == pytest.approx(30)
    keys, kept = torch.cat([first.keys, second.keys]), torch.cat([first.features, second.features])
    assert torch.equal(both.features, kept[keys.argsort()[:70]])
    with pytest.raises(ValueError, match=r"pixels-1, 70 kept, and pixels-1, 60 kept"):
        _ = first + gathered(x, keep=60)


def test_describe():
    images = torch.randint(0, 256, (90, 1, 2, 5), generator=rng(), dtype=torch.uint8)
    found = describe(Pixels(), images.split(16), rng=rng(), keep=40, classes=True)
    assert (found.source, found.name, found.statistics.count) == ("pixels-1", "pixels", 90)
    torch.testing.assert_close(found.statistics.covariance, torch.cov(images.double().flatten(1).T))
    assert found.features.shape == (40, 10)
    expected = ClassScores()
    expected.add(Pixels().classify(images)[1])
    assert found.classes.score() == pytest.approx(expected.score())
    assert found.clip is None
    assert describe(Blind(), [images], rng=rng()).classes is None


def test_what_cannot_be_described_is_refused():
    images = torch.zeros(4, 1, 2, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="Inception's classes, blind has none"):
        describe(Blind(), [images], rng=rng(), classes=True)
    with pytest.raises(ValueError, match="0 images"):
        describe(Blind(), [], rng=rng())
    with pytest.raises(ValueError, match="NaN"):
        gathered(draw(4, 3).log(), keep=10)
