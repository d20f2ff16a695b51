"""Labels as conditions."""

import pytest
import torch

from dmdistill.data.conditions import Labels, LabelSpace

SPACE = LabelSpace(("ant", "bee", "cat"))


def test_labels_are_one_hot_rows_and_null_ones_are_zero():
    labels = SPACE.select(torch.tensor([2, 0, 1, 2]))
    assert labels.one_hot.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert len(labels) == 4
    assert torch.equal(labels.null().one_hot, torch.zeros(4, 3))


def test_concatenated_parts_are_all_labels():
    labels = SPACE.select(torch.tensor([2, 0, 1, 2, 1]))
    assert torch.equal(labels[slice(0, 2)].concat(labels[slice(2, 9)]).one_hot, labels.one_hot)


@pytest.mark.parametrize("index", [[3], [0, -1], [1, 99]])
def test_labels_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        SPACE.select(torch.tensor(index))


def test_no_labels_are_labels_too():
    assert SPACE.select(torch.tensor([], dtype=torch.int64)).one_hot.shape == (0, 3)


def test_dropping_zeroes_rows_with_its_probability(rng):
    labels = SPACE.select(torch.randint(3, (20_000,), generator=rng))
    dropped = labels.drop(0.1, rng=rng).one_hot
    kept = dropped.sum(1) == 1
    assert torch.equal(dropped[kept], labels.one_hot[kept])
    assert dropped[~kept].sum() == 0
    assert (~kept).double().mean().item() == pytest.approx(0.1, abs=0.01)  # 4.7 sigma
    assert torch.equal(labels.drop(0.0, rng=rng).one_hot, labels.one_hot)
    assert torch.equal(labels.drop(1.0, rng=rng).one_hot, labels.null().one_hot)


def test_moving_keeps_the_values():
    labels = SPACE.select(torch.tensor([1, 2]))
    assert isinstance(labels.to(torch.device("cpu")), Labels)
    assert torch.equal(labels.to(torch.device("cpu")).one_hot, labels.one_hot)
