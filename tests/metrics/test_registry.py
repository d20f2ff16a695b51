"""All metrics by name; and that they order what an eye orders, with a network of random weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dmdistill.metrics.accumulate import FeatureStatistics, describe
from dmdistill.metrics.inception_score import ClassScores
from dmdistill.metrics.registry import METRICS, Settings, compute, qualified_name


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


def seen(features, images):
    return describe(features, images.split(25), rng=rng())


def figures(features, generated, reference, names=METRICS[:6]):
    """reference: images, or what was seen of them."""
    reference = reference if isinstance(reference, FeatureStatistics) else seen(features, reference)
    settings = Settings(kid_subsets=10, kid_size=min(100, len(generated)))
    return compute(names, seen(features, generated), reference, rng=rng(), settings=settings)


def check_orders(features, real, held_out):
    """What must hold of any good features, real ones or not."""
    reference = seen(features, real)
    same = figures(features, real, reference)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    fresh = figures(features, held_out, reference)
    for changed in (
        [noised(held_out, level) for level in (20, 80)],
        [blurred(held_out, size) for size in (3, 7)],
        [(held_out // shade + 20) for shade in (2, 8)],
    ):
        course = [fresh, *(figures(features, images, reference) for images in changed)]
        for name in ("fid", "kid"):
            assert [one[name] for one in course] == sorted(one[name] for one in course)
        for name in ("coverage", "precision"):
            assert course[-1][name] < course[0][name]
    few = figures(features, held_out[:12].repeat(len(held_out) // 12, 1, 1, 1), reference)  # a mode collapse
    assert few["fid"] > fresh["fid"]
    assert few["coverage"] < fresh["coverage"] / 2
    assert few["recall"] < fresh["recall"] / 2
    assert few["precision"] > 0.4 * fresh["precision"]


def test_the_metrics_order_what_an_eye_orders():
    check_orders(Named(), pictures(300), pictures(300, seed=50))


def test_grey_and_colour_are_compared_by_what_is_seen():
    grey = pictures(150)[:, :1]
    assert figures(Named(), grey, grey.expand(-1, 3, -1, -1), ["fid"])["fid"] == pytest.approx(0, abs=1e-6)


def test_names_and_their_order():
    real, generated = pictures(120), pictures(120, seed=50)
    found = figures(Named(), generated, real, ["recall", "kid", "fid"])
    assert list(found) == ["fid", "kid", "kid_error", "recall"]
    judged = figures(Network(), generated, real, ["recall", "kid", "fid"])
    assert list(judged) == ["frechet_network", "kernel_network", "kernel_error_network", "recall_network"]
    assert list(judged.values()) == list(found.values())
    assert qualified_name("clip", "network") == "clip"
    assert figures(Named(), generated, real, []) == {}


def test_what_needs_no_reference():
    generated = describe(Named(), [pictures(20)], rng=rng())
    classes = ClassScores()
    classes.add(torch.eye(4).repeat(5, 1).repeat_interleave(10, dim=0))
    found = compute(["clip", "is"], replace(generated, classes=classes, clip=31.5), rng=rng())
    assert found == {"is": pytest.approx(4), "is_std": pytest.approx(0, abs=1e-9), "clip": 31.5}


def test_statistics_alone_give_the_frechet_distance():
    generated, reference = (describe(Named(), [pictures(80, seed=seed)], rng=rng()) for seed in (0, 50))
    bare = FeatureStatistics(reference.source, reference.name, reference.statistics)
    assert compute(["fid"], generated, bare, rng=rng()) == compute(["fid"], generated, reference, rng=rng())
    for name in METRICS[1:6]:
        with pytest.raises(ValueError, match=f"{name} needs features of the reference, which has statistics alone"):
            compute([name], generated, bare, rng=rng())


def test_what_is_missing_is_said():
    generated = describe(Named(), [pictures(80)], rng=rng())
    other = describe(Network(), [pictures(80)], rng=rng())
    with pytest.raises(ValueError, match=r"seen through inception-of-tests, the reference through network-1"):
        compute(["fid"], generated, other, rng=rng())
    with pytest.raises(ValueError, match="fid compares with real images: a reference is needed"):
        compute(["fid"], generated, rng=rng())
    with pytest.raises(ValueError, match="unknown metric 'fud', known: fid, kid"):
        compute(["fid", "fud"], generated, generated, rng=rng())
    with pytest.raises(ValueError, match="80 generated images, a subset"):
        compute(["kid"], generated, generated, rng=rng())  # of 1000, by default
    for name in ("is", "clip"):
        with pytest.raises(ValueError, match=f"^{name} needs .* not gathered"):
            compute([name], generated, generated, rng=rng())
