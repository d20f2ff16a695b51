import math

import numpy as np
import pytest
import torch

from dmdistill.metrics.kid import kernel_inception_distance, squared_mmd


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def brute(x, y):
    """The unbiased MMD^2, pair by pair."""
    x, y = x.double().numpy(), y.double().numpy()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * np.mean([[kernel(a, b) for b in y] for a in x])


def test_pair_by_pair():
    x, y = draw(9, 5), draw(7, 5, seed=1) + 0.3
    assert float(squared_mmd(x, y)) == pytest.approx(brute(x, y), rel=1e-12)


def test_agrees_with_torchmetrics():
    """The same subsets: all images, in any order."""
    kid = pytest.importorskip("torchmetrics.image.kid")
    identity = torch.nn.Identity()
    identity.num_features = 12
    metric = kid.KernelInceptionDistance(identity, subsets=2, subset_size=60)
    x, y = draw(60, 12).double(), draw(60, 12, seed=1).double().exp()
    metric.update(x, real=True)
    metric.update(y, real=False)
    mean, error = kernel_inception_distance(y, x, rng=rng(), subsets=2, subset_size=60)
    assert mean == pytest.approx(float(metric.compute()[0]), rel=1e-6)
    assert error < 1e-12


def test_unbiased():
    """Of two sets of one distribution, the mean over many is 0 within its own error; with the diagonals it is not."""
    values = torch.stack([squared_mmd(draw(20, 6, seed=i), draw(30, 6, seed=1000 + i)) for i in range(400)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(400)
    assert (values < 0).any()


def test_the_standard_error_shrinks_with_subsets():
    x, y = draw(500, 6), draw(400, 6, seed=1) + 0.2
    few, many = (kernel_inception_distance(x, y, rng=rng(), subsets=subsets, subset_size=50) for subsets in (50, 800))
    assert 3 < few[1] / many[1] < 5.3
    assert abs(few[0] - many[0]) < 4 * few[1]
    assert kernel_inception_distance(x, y, rng=rng(), subsets=50, subset_size=50) == few
    assert kernel_inception_distance(x, y, rng=rng(1), subsets=50, subset_size=50) != few


def test_what_cannot_be_compared_is_refused():
    x = draw(30, 6)
    with pytest.raises(ValueError, match=r"30 generated images, a subset .* needs at least 40"):
        kernel_inception_distance(x, draw(50, 6), rng=rng(), subset_size=40)
    with pytest.raises(ValueError, match=r"30 reference images"):
        kernel_inception_distance(draw(50, 6), x, rng=rng(), subset_size=40)
    with pytest.raises(ValueError, match="sets of 6 and 8 features"):
        kernel_inception_distance(x, draw(30, 8), rng=rng(), subset_size=20)
    with pytest.raises(ValueError, match="NaN"):
        kernel_inception_distance(x.log(), x, rng=rng(), subset_size=20)
    with pytest.raises(ValueError, match=r"\(30, 6, 1\)"):
        kernel_inception_distance(x[..., None], x, rng=rng(), subset_size=20)
    with pytest.raises(ValueError, match="1 subsets of 20"):
        kernel_inception_distance(x, x, rng=rng(), subsets=1, subset_size=20)
