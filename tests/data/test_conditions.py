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


@pytest.mark.parametrize(("label", "number"), [(2, 2), ("2", 2), ("cat", 2), (" Bee", 1), ("ANT", 0)])
def test_a_class_is_known_by_its_number_and_its_name(label, number):
    assert SPACE.number(label) == number


def test_a_name_comes_before_no_number_of_another_class():
    """Classes named by digits, in another order than their numbers: numbers are numbers."""
    assert [LabelSpace(("1", "0")).number(label) for label in ("0", "1", 0, 1)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "no class 3, expected 0 to 2 or a name of 3 classes: ant, bee, cat"),
        ("-1", "no class -1, expected 0 to 2"),
        ("beee", "no class beee, .*; did you mean 'bee'?"),
    ],
)
def test_an_unknown_class_is_refused(label, message):
    with pytest.raises(ValueError, match=message):
        SPACE.number(label)


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
