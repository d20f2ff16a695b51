import pickle

import pytest
import torch

from dmdistill.metrics.accumulate import FeatureAccumulator
from dmdistill.metrics.extraction import FeatureExtraction, PromptScoring
from dmdistill.metrics.inception_score import ClassScores
from dmdistill.metrics.registry import compute_metrics
from helpers.feature_statistics import extract


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pixels:
    """Features that are the pixels, and a fifth as many classes."""

    id, name = "pixels-1", "pixels"

    def __call__(self, images):
        return images.float().flatten(1)

    def classify(self, images):
        features = self(images)
        return features, features.unflatten(1, (-1, 5)).mean(2).softmax(1)


class Score:
    """The number of red values of 255 where the prompt is "red", in the place of a CLIP model."""

    id = "score-1"

    def __call__(self, images, prompts):
        return torch.tensor(
            [float((image[0] == 255).sum()) * (text == "red") for image, text in zip(images, prompts, strict=True)]
        )


class WithoutClasses:
    id, name = "without-1", "without-classes"

    def __call__(self, images):
        return images.float().flatten(1)


def accumulate(features, *, capacity, size=64, first=0):
    """Features of images numbered from `first` on, in batches of `size`, with the last ones merged."""
    accumulator = FeatureAccumulator("pixels-1", "pixels", capacity)
    for batch in features.split(size):
        accumulator.add(batch, first=first)
        first += len(batch)
    accumulator.merge()
    return accumulator


def test_the_sample_does_not_depend_on_batches():
    x = draw(500, 6)
    whole = accumulate(x, capacity=70, size=500)
    for size in (1, 9, 200):
        assert torch.equal(accumulate(x, capacity=70, size=size).features, whole.features)
    assert len(whole.features) == 70
    assert len({tuple(row) for row in whole.features.tolist()} & {tuple(row) for row in x.tolist()}) == 70


def test_all_images_are_as_likely_to_be_sampled():
    """Of a sorted set, as folders by class are, the sample's mean is the set's within its own error."""
    x = torch.linspace(0, 1, 1000)[:, None]
    means = torch.stack([accumulate(x, capacity=50, first=1000 * i).features.mean() for i in range(100)])
    assert abs(float(means.mean()) - 0.5) < 4 * float(means.std()) / 10
    assert float(means.std()) == pytest.approx((1 / 12 / 50) ** 0.5, rel=0.25)


def test_fewer_images_than_the_capacity_are_all_stored():
    x = draw(30, 6)
    assert torch.equal(accumulate(x, capacity=100).features.sort(0).values, x.sort(0).values)
    assert accumulate(x, capacity=0).statistics().features is None


def test_shares_of_processes_add_up():
    """To the sample of one process, also before all is merged, and after a journey between processes."""
    x = draw(500, 6)
    whole = accumulate(x, capacity=70)
    first, second = accumulate(x[:200], capacity=70), accumulate(x[200:440], capacity=70, first=200)
    second.add(x[440:], first=440)
    assert second.pending
    for shares in ((first, second), pickle.loads(pickle.dumps((first, second)))):
        both = (shares[0] + shares[1]).statistics()
        assert both.statistics.count == 500
        torch.testing.assert_close(both.statistics.mean, x.double().mean(0))
        assert torch.equal(both.features, whole.features)
    with pytest.raises(ValueError, match=r"pixels-1 with capacity 70 and of pixels-1 with capacity 60"):
        _ = first + accumulate(x, capacity=60)


def test_statistics_of_an_extraction():
    images = torch.randint(0, 256, (90, 1, 2, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = extract(Pixels(), images.split(16), store_features=True, predict_classes=True)
    assert (found.source, found.name, found.statistics.count) == ("pixels-1", "pixels", 90)
    torch.testing.assert_close(found.statistics.covariance, torch.cov(images.double().flatten(1).T))
    assert torch.equal(found.features.sort(0).values, images.float().flatten(1).sort(0).values)
    expected = ClassScores()
    expected.add(Pixels().classify(images)[1])
    assert found.classes.score() == pytest.approx(expected.score())
    assert extract(WithoutClasses(), [images]).classes is None


def test_clip_scores_are_averaged_with_prompts_in_turn():
    images = torch.zeros(10, 3, 2, 5, dtype=torch.uint8)
    images[:, 0, 0, 0] = 255
    images[4, 0] = 255
    scoring = PromptScoring("clip", Score(), ["red", "blue", "green", "grey"])
    for rows in (range(3), range(3, 10)):
        scoring.add(images[rows], rows)
    found = scoring.accumulator.statistics()
    values = compute_metrics(["clip"], found, rng=torch.Generator())
    assert values == {"clip": pytest.approx((1 + 10 + 1) / 10)}


def test_what_has_no_statistics_is_refused():
    images = torch.zeros(4, 1, 2, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="without-classes has none"):
        extract(WithoutClasses(), [images], predict_classes=True)
    with pytest.raises(ValueError, match="0 images"):
        FeatureExtraction(WithoutClasses()).statistics()
    with pytest.raises(ValueError, match="NaN"):
        accumulate(draw(4, 3).log(), capacity=10)
