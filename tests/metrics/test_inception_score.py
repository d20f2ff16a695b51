import numpy as np
import pytest
import torch

from dmdistill.metrics.inception_score import SPLITS, ClassScores


def draw(n, classes, seed=0):
    return (2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def accumulate(batches):
    scores = ClassScores()
    for batch in batches:
        scores.add(batch)
    return scores


def test_the_definition():
    """exp of the mean divergence, hand by hand, in numpy."""
    p = draw(203, 7)
    hands = [p[hand::SPLITS].double().numpy() for hand in range(SPLITS)]
    values = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in hands]
    assert accumulate([p]).score() == pytest.approx((np.mean(values), np.std(values)), rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_do_not_matter_and_shares_add(size):
    p = draw(200, 5)
    whole = accumulate([p])
    assert accumulate(p.split(size)).score() == pytest.approx(whole.score(), rel=1e-12)
    assert (accumulate([p[:100]]) + accumulate([p[100:]])).score() == pytest.approx(whole.score(), rel=1e-12)
    assert (ClassScores() + whole).score() == whole.score()


def test_agrees_with_torchmetrics():
    """On copies: each split then has the same images as the set."""
    inception = pytest.importorskip("torchmetrics.image.inception")
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    identity = torch.nn.Identity()
    metric = inception.InceptionScore(identity, splits=1)
    metric.update(logits)
    found = accumulate([logits.softmax(1).repeat_interleave(SPLITS, dim=0)]).score()
    assert found[0] == pytest.approx(float(metric.compute()[0]), rel=1e-5)
    assert found[1] < 1e-9


def test_the_extremes():
    """As many as there are classes where each image is sure and all classes appear; 1 where all look the same."""
    sure = torch.eye(4).repeat(SPLITS, 1).repeat_interleave(SPLITS, dim=0)
    assert accumulate([sure]).score() == pytest.approx((4, 0))
    assert accumulate([draw(1, 4).expand(50, -1)]).score() == pytest.approx((1, 0), abs=1e-6)


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match=f"9 images, the Inception score needs at least {SPLITS}"):
        accumulate([draw(9, 4)]).score()
    for wrong in (torch.ones(3, 4), draw(3, 4).log(), draw(3, 4)[0]):
        with pytest.raises(ValueError, match="of sum 1"):
            accumulate([wrong])
