"""Pseudo-random orders of any length, of which a part is computed without the rest."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Permutation"]

ROUNDS = 8  # of the Feistel network, four for each half


class Permutation:
    """A pseudo-random permutation of 0 to size - 1: a Feistel network with cycle walking.

    A number is written as a pair (left, right) in a rectangle of about size cells, a round adds a random function of
    one half to the other, and what lands outside is sent through again. Memory and the time to make one grow with the
    square root of the size, the time of an element does not grow. (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains", with tables of random numbers for the functions.)

    Args:
        size: of the permutation, 1 or more.
        key: integers of 0 or more. Equal sizes and keys give equal permutations, others unrelated ones.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self.height = math.isqrt(size - 1) + 1
        self.width = -(-size // self.height)
        numbers = np.random.PCG64(key).random_raw(ROUNDS * self.height) >> np.uint64(32)  # the same in every numpy
        below = np.tile(np.array([[self.width], [self.height]], np.uint64), (ROUNDS // 2, 1))
        self.tables = (numbers.reshape(ROUNDS, self.height) * below >> np.uint64(32)).astype(np.int64)

    def __getitem__(self, positions: slice) -> list[int]:
        """Return the elements at these positions, of which there are `size`."""
        values = self.shuffle(np.arange(*positions.indices(self.size)))
        while (outside := values >= self.size).any():
            values[outside] = self.shuffle(values[outside])
        return values.tolist()

    def shuffle(self, values: np.ndarray) -> np.ndarray:
        """Permute the cells of the rectangle."""
        left, right = np.divmod(values, self.width)
        for even, odd in zip(self.tables[0::2], self.tables[1::2], strict=True):
            right = (right + even.take(left)) % self.width
            left = (left + odd.take(right)) % self.height
        return left * self.width + right
