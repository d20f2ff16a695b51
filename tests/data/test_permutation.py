"""Permutations that are computed in parts: complete, uniform, functions of their keys."""

from collections import Counter

import numpy as np
import pytest

from dmdistill.data.permutation import Permutation


@pytest.mark.parametrize("sizes", [range(1, 200), [1023, 1024, 1025, 4097, 65537, 100_003]])
def test_every_number_comes_once(sizes):
    for size in sizes:
        assert sorted(Permutation(size, 3, size)[:]) == list(range(size))


def test_parts_are_those_of_the_whole():
    whole = Permutation(1000, 5, 2)[:]
    parts = [Permutation(1000, 5, 2)[start : start + 7] for start in range(0, 1000, 7)]
    assert [row for part in parts for row in part] == whole
    assert Permutation(1000, 5, 2)[998:2000] == whole[998:]


def test_keys_make_unrelated_orders():
    """Of two unrelated orders of 1000 numbers about one number has the same place in both."""
    orders = [Permutation(1000, seed, epoch)[:] for seed in range(8) for epoch in range(8)]
    same = [sum(map(int.__eq__, a, b)) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(same) < 10
    assert abs(np.mean(same) - 1) < 0.1


@pytest.mark.parametrize("size", [10, 23, 48])
def test_orders_are_uniform(size):
    """Chi-squared over many keys: a number's place, the number after another, and the order of the first three."""
    keys = 6000
    orders = np.array([Permutation(size, key, 7)[:] for key in range(keys)])
    for counts, degrees in (
        (np.array([np.bincount(column, minlength=size) for column in orders.T]), (size - 1) ** 2),
        (np.bincount((orders[:, 1:] - orders[:, :-1]).ravel() % size, minlength=size)[1:], size - 2),
        (np.array(list(Counter(map(tuple, orders[:, :3].argsort(1))).values())), 5),
    ):
        expected = counts.sum() / counts.size
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_squared - degrees) < 4.5 * (2 * degrees) ** 0.5


def test_twelve_million_are_not_drawn_at_once():
    """The largest table has the square root of them."""
    order = Permutation(12_000_000, 1)
    assert max(order.tables.shape) < 4000
    rows = order[11_999_000:] + order[:1000]
    assert len(set(rows)) == 2000
    assert all(0 <= row < 12_000_000 for row in rows)
    assert abs(np.mean(rows) / 6e6 - 1) < 0.05
