"""All metrics by name; and that they order what an eye orders, with a network of random weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dmdistill.metrics.accumulate import FeatureStatistics
from dmdistill.metrics.frechet import Statistics
from dmdistill.metrics.inception_score import ClassScores
from dmdistill.metrics.registry import BY_PROMPT, METRICS, MetricOptions, compute_metrics, metric_label, parse_metrics
from helpers.feature_statistics import extract

COMPARING = ("fid", "kid", "precision", "recall", "density", "coverage")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Network:
    """Random convolutions, of grey and of colour, the same for all."""

    id, name = "network-1", "network"

    def __init__(self):
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
        ).requires_grad_(False)

    def __call__(self, images):
        return self.layers(images.float().expand(-1, 3, -1, -1) / 127.5 - 1)


class Named(Network):
    """The same as if it were Inception: figures then have their published names."""

    id, name = "inception-of-tests", "inception"


def pictures(n, *, seed=0, size=(20, 24)):
    """Colour blobs: smooth noise with some detail."""
    coarse = torch.randn(n, 3, 5, 6, generator=rng(seed))
    fine = torch.randn(n, 3, *size, generator=rng(seed + 1))
    x = 60 * F.interpolate(coarse, size, mode="bicubic") + 15 * fine + 128
    return x.round().clamp(0, 255).to(torch.uint8)


def noised(images, level):
    noise = level * torch.randn(images.shape, generator=rng(7))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, size):
    return F.avg_pool2d(images.float(), size, 1, size // 2, count_include_pad=False).round().to(torch.uint8)


def statistics(features, images):
    return extract(features, images.split(25), store_features=True)


def values(features, generated, reference, names=COMPARING):
    """reference: images, or their statistics."""
    reference = reference if isinstance(reference, FeatureStatistics) else statistics(features, reference)
    options = MetricOptions(kid_subsets=10, kid_subset_size=min(100, len(generated)))
    return compute_metrics(names, statistics(features, generated), reference, rng=rng(), options=options)


def check_orders(features, real, held_out):
    """What must hold of any good features, real ones or not."""
    reference = statistics(features, real)
    same = values(features, real, reference)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    fresh = values(features, held_out, reference)
    for changed in (
        [noised(held_out, level) for level in (20, 80)],
        [blurred(held_out, size) for size in (3, 7)],
        [(held_out // shade + 20) for shade in (2, 8)],
    ):
        course = [fresh, *(values(features, images, reference) for images in changed)]
        for name in ("fid", "kid"):
            assert [one[name] for one in course] == sorted(one[name] for one in course)
        for name in ("coverage", "precision"):
            assert course[-1][name] < course[0][name]
    few = values(features, held_out[:12].repeat(len(held_out) // 12, 1, 1, 1), reference)  # a mode collapse
    assert few["fid"] > fresh["fid"]
    assert few["coverage"] < fresh["coverage"] / 2
    assert few["recall"] < fresh["recall"] / 2
    assert few["precision"] > 0.4 * fresh["precision"]


def test_the_metrics_order_what_an_eye_orders():
    check_orders(Named(), pictures(300), pictures(300, seed=50))


def test_grey_and_colour_are_compared_as_displayed():
    grey = pictures(150)[:, :1]
    assert values(Named(), grey, grey.expand(-1, 3, -1, -1), ["fid"])["fid"] == pytest.approx(0, abs=1e-6)


def test_names_and_their_order():
    real, generated = pictures(120), pictures(120, seed=50)
    found = values(Named(), generated, real, ["recall", "kid", "fid"])
    assert list(found) == ["fid", "kid", "kid_error", "recall"]
    others = values(Network(), generated, real, ["recall", "kid", "frechet"])
    assert list(others) == ["frechet_network", "kid_network", "kid_error_network", "recall_network"]
    assert list(others.values()) == list(found.values())
    assert values(Named(), generated, real, []) == {}


@pytest.mark.parametrize(
    ("key", "label", "direction"),
    [
        ("fid", "FID", "lower is better"),
        ("kid", "KID", "lower is better"),
        ("kid_error_fashion-classifier", "KID error (fashion-classifier)", ""),
        ("frechet_my_own", "Frechet distance (my_own)", "lower is better"),
        ("recall_network", "recall (network)", "higher is better"),
        ("is_std", "Inception score std", ""),
        ("clip", "CLIP score", "higher is better"),
        ("something", "something", ""),
    ],
)
def test_labels_are_readable_and_say_which_direction_is_better(key, label, direction):
    assert metric_label(key) == (label, direction)


def test_every_value_has_a_label_and_every_metric_its_own_value():
    """Of all metrics at once, each computed from the same sets."""
    x = statistics(Named(), pictures(60))
    classes = ClassScores()
    classes.add(torch.eye(4).repeat(5, 1))
    x, options = replace(x, classes=classes), MetricOptions(kid_subset_size=50, prompts=("a", "b"))
    found = compute_metrics([name for name in METRICS if name not in BY_PROMPT], x, x, rng=rng(), options=options)
    for name, mean in zip(BY_PROMPT, (30.0, 0.5), strict=True):
        scores = FeatureStatistics(f"{name}-1", name, Statistics(torch.tensor([mean]), torch.zeros(1, 1), 9))
        found |= compute_metrics([name], scores, rng=rng())
        assert found[name] == mean
    assert {*METRICS, "kid_error", "is_std"} == set(found)
    assert all(metric_label(key)[0] != "" for key in found)


def test_what_needs_no_reference():
    generated = statistics(Named(), pictures(20))
    classes = ClassScores()
    classes.add(torch.eye(4).repeat(5, 1).repeat_interleave(10, dim=0))
    found = compute_metrics(["is"], replace(generated, classes=classes), rng=rng())
    assert found == {"is": pytest.approx(4), "is_std": pytest.approx(0, abs=1e-9)}


def test_statistics_without_features_give_the_frechet_distance():
    generated, reference = (statistics(Named(), pictures(80, seed=seed)) for seed in (0, 50))
    bare = FeatureStatistics(reference.source, reference.name, reference.statistics)
    fid = compute_metrics(["fid"], generated, bare, rng=rng())
    assert fid == compute_metrics(["fid"], generated, reference, rng=rng())
    for name in COMPARING[1:]:
        with pytest.raises(ValueError, match=f"{name} needs features of single images, the reference"):
            compute_metrics([name], generated, bare, rng=rng())


def test_missing_inputs_are_named():
    generated, other = (statistics(network(), pictures(80)) for network in (Named, Network))
    with pytest.raises(ValueError, match=r"inception-of-tests's, the reference's are network-1's"):
        compute_metrics(["fid"], generated, other, rng=rng())
    with pytest.raises(ValueError, match="fid is defined for the features of inception, these are network's"):
        compute_metrics(["fid"], other, other, rng=rng())
    with pytest.raises(ValueError, match="fid compares with reference images"):
        compute_metrics(["fid"], generated, rng=rng())
    with pytest.raises(ValueError, match=r"'fud'.*Known: fid, frechet"):
        compute_metrics(["fid", "fud"], generated, generated, rng=rng())
    with pytest.raises(ValueError, match="80 generated images, a subset"):
        compute_metrics(["kid"], generated, generated, rng=rng())  # of 1000, by default
    with pytest.raises(ValueError, match=r"^is needs .* not extracted"):
        compute_metrics(["is"], generated, generated, rng=rng())
    with pytest.raises(ValueError, match=r"^clip is defined for the features of clip"):
        compute_metrics(["clip"], generated, generated, rng=rng())


def test_lists_of_metrics_are_read():
    assert parse_metrics("kid, fid,kid") == ["kid", "fid"]
    for text in ("fid,,kid", ",", "", "fid,"):
        with pytest.raises(ValueError, match=f"--metrics '{text}' has an empty name"):
            parse_metrics(text)
    with pytest.raises(ValueError, match="'fdi'; did you mean 'fid'"):
        parse_metrics("fdi")
