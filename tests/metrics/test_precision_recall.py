import numpy as np
import pytest
import torch

from dmdistill.metrics import precision_recall as manifold
from dmdistill.metrics.precision_recall import density_coverage, precision_recall


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(x, y, k):
    """All four from matrices of all distances, difference by difference."""
    x, y = x.double().numpy(), y.double().numpy()

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))

    reach_x, reach_y = (np.sort(distances(a, a), axis=1)[:, k] for a in (x, y))
    between = distances(x, y)
    inside = between <= reach_y
    precision, recall = inside.any(1).mean(), (between <= reach_x[:, None]).any(0).mean()
    return precision, recall, inside.sum() / (k * len(x)), (between.min(0) <= reach_y).mean()


@pytest.mark.parametrize("block", [1 << 23, 200, 1])
@pytest.mark.parametrize(("n", "m", "k", "shift"), [(90, 70, 3, 0.5), (60, 101, 5, 1.0), (8, 6, 5, 0.0)])
def test_brute_force(n, m, k, shift, block, monkeypatch):
    """Whatever the pieces that the rows come in."""
    monkeypatch.setattr(manifold, "BLOCK", block)
    x, y = draw(n, 7) * 0.8 + shift, draw(m, 7, seed=1)
    found = (*precision_recall(x, y, k=k), *density_coverage(x, y, k=k))
    assert found == pytest.approx(brute(x, y, k), abs=1e-12)


def test_the_same_set():
    x = draw(200, 40)
    assert precision_recall(x, x.clone()) == (1.0, 1.0)
    density, coverage = density_coverage(x, x.clone(), k=5)
    assert coverage == 1.0
    assert density == pytest.approx(6 / 5)  # each ball holds its k neighbours and its own centre


def test_copies_lie_on_their_originals():
    """With more copies than neighbours every radius is 0, where rounding would decide."""
    x = (100 * draw(20, 300)).repeat(8, 1)
    assert precision_recall(x, x[:100]) == (1.0, 1.0)
    assert precision_recall(x + 1e-3, x) == (0.0, 0.0)


def test_far_sets_share_nothing():
    x, y = draw(50, 6), draw(40, 6, seed=1) + 100
    assert (*precision_recall(x, y), *density_coverage(x, y)) == (0, 0, 0, 0)


def test_a_part_is_precise_and_recalls_little():
    """One of two clusters: precision stays, recall and coverage halve."""
    reference = torch.cat([draw(150, 5), draw(150, 5, seed=1) + 50])
    precision, recall = precision_recall(draw(300, 5, seed=2), reference)
    assert precision > 0.8
    assert 0.35 < recall <= 0.5
    assert 0.4 < density_coverage(draw(300, 5, seed=2), reference)[1] <= 0.5


def test_moving_both_moves_nothing():
    x, y = draw(80, 6).double(), draw(80, 6, seed=1).double()
    turn = torch.linalg.qr(draw(6, 6, seed=2).double()).Q
    moved = [3 * f @ turn + 5 for f in (x, y)]
    assert precision_recall(*moved) == precision_recall(x, y)
    assert density_coverage(*moved) == density_coverage(x, y)


@pytest.mark.parametrize(("measure", "k"), [(precision_recall, 3), (density_coverage, 5)])
def test_what_cannot_be_compared_is_refused(measure, k):
    x = draw(30, 6)
    with pytest.raises(ValueError, match=f"{k} generated images, the {k}-th nearest neighbour needs at least {k + 1}"):
        measure(x[:k], x)
    with pytest.raises(ValueError, match=f"{k} reference images"):
        measure(x, x[:k])
    with pytest.raises(ValueError, match="sets of 6 and 8 features"):
        measure(x, draw(30, 8))
    with pytest.raises(ValueError, match="the 30 reference images contain NaN"):
        measure(x, x.log())
